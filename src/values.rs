//! What options take: parsers that refuse nonsense, so that nothing behind them has to check it.

use std::fmt::Display;
use std::str::FromStr;

use crate::tensor::Elements;
use crate::train::Part;
use crate::volume::Orientation;

/// A number from 1 up to what 32 bits hold.
pub fn count(text: &str) -> Result<usize, String> {
    whole(text, 1)
}

/// A number from 2 up to what 32 bits hold: classes, the background included.
pub fn classes(text: &str) -> Result<usize, String> {
    whole(text, 2)
}

fn whole(text: &str, least: usize) -> Result<usize, String> {
    let range = least..=u32::MAX as usize;
    let number = text.trim().parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| format!("it must be a whole number from {least} to {}", u32::MAX))
}

/// A finite number above zero.
pub fn positive<T: Real>(text: &str) -> Result<T, String> {
    let number = T::finite(text).filter(|n| *n > T::default());
    number.ok_or_else(|| "it must be a number above 0".to_owned())
}

/// A finite number, 0 or above.
pub fn not_negative<T: Real>(text: &str) -> Result<T, String> {
    let number = T::finite(text).filter(|n| *n >= T::default());
    number.ok_or_else(|| "it must be a number, 0 or above".to_owned())
}

/// So many numbers of [`count`], with commas between them.
pub fn counts<const N: usize>(text: &str) -> Result<[usize; N], String> {
    several(text, &["1"; N].join(","), count)
}

/// Voxels along D, H and W, at least one each and not too many together.
pub fn grid(text: &str) -> Result<[usize; 3], String> {
    let size = several(text, "40,56,40", count)?;
    match Elements::of(&size) {
        Some(_) => Ok(size),
        None => Err(format!("it must be at most {} voxels in all", Elements::MOST)),
    }
}

/// Millimetres along D, H and W, each above zero.
pub fn spacing(text: &str) -> Result<[f64; 3], String> {
    several(text, "1.5,1,1", positive)
}

/// A part of the augmentation: the share of the cases that have it, and how strong it is.
pub fn part(text: &str) -> Result<Part, String> {
    let [probability, strength] = several(text, "0.2,30", not_negative::<f32>)?;
    match probability <= 1.0 {
        true => Ok(Part {
            probability,
            strength,
        }),
        false => Err(format!("the share of the cases, {probability}, is above 1")),
    }
}

/// [`part`], its strength a factor.
pub fn factor_part(text: &str) -> Result<Part, String> {
    let part = part(text)?;
    match part.strength >= 1.0 {
        true => Ok(part),
        false => Err("the second number must be 1 or above".into()),
    }
}

/// [`part`], its strength a share below 1.
pub fn share_part(text: &str) -> Result<Part, String> {
    let part = part(text)?;
    match part.strength < 1.0 {
        true => Ok(part),
        false => Err("the second number must be below 1".into()),
    }
}

/// A share from 0 to 1.
pub fn share(text: &str) -> Result<f32, String> {
    let number = f32::finite(text).filter(|n| (0.0..=1.0).contains(n));
    number.ok_or_else(|| "it must be a number from 0 to 1".to_owned())
}

/// A share from 0 up to but not 1.
pub fn below_one(text: &str) -> Result<f32, String> {
    let number = share(text).ok().filter(|n| *n < 1.0);
    number.ok_or_else(|| "it must be a number from 0 up to but not 1".to_owned())
}

/// Which way axes point, such as RAS.
pub fn orientation(text: &str) -> Result<String, String> {
    let code: Orientation = text.trim().parse()?;
    Ok(code.to_string())
}

/// As many values with commas (or, as sizes are written, x) between them as `example` shows.
pub fn several<T, E: Display, const N: usize>(
    text: &str,
    example: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<[T; N], String> {
    let parts: Vec<T> = text
        .split([',', 'x'])
        .map(|part| parse(part.trim()).map_err(|e| format!("`{}`: {e}", part.trim())))
        .collect::<Result<_, _>>()?;
    let found = parts.len();
    parts
        .try_into()
        .map_err(|_| format!("{N} numbers are needed, such as {example}, not {found}"))
}

/// f32 or f64.
pub trait Real: FromStr + PartialOrd + Default {
    /// The number, unless it is infinite or none.
    fn finite(text: &str) -> Option<Self>;
}

impl Real for f32 {
    fn finite(text: &str) -> Option<f32> {
        text.trim().parse().ok().filter(|n: &f32| n.is_finite())
    }
}

impl Real for f64 {
    fn finite(text: &str) -> Option<f64> {
        text.trim().parse().ok().filter(|n: &f64| n.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_finite_and_in_range() {
        assert_eq!(count("1"), Ok(1));
        assert_eq!(count("4294967295"), Ok(4294967295));
        for wrong in ["0", "-1", "1.5", "nan", "", "4294967296", "99999999999999999999"] {
            assert!(count(wrong).is_err(), "{wrong}");
        }
        assert!(classes("1").is_err() && classes("2").is_ok());
        assert_eq!(positive("1e-3"), Ok(1e-3f64));
        assert_eq!(not_negative("0"), Ok(0f32));
        for wrong in ["nan", "inf", "-inf", "-1", "1e400", "one", ""] {
            assert!(positive::<f64>(wrong).is_err(), "{wrong}");
            assert!(not_negative::<f32>(wrong).is_err(), "{wrong}");
        }
        assert!(positive::<f32>("0").is_err() && positive::<f32>("1e39").is_err());
    }

    #[test]
    fn grids_have_three_sides_and_a_number_of_voxels_that_fits() {
        assert_eq!(grid("40,56,40"), Ok([40, 56, 40]));
        assert_eq!(grid("40x56x40"), Ok([40, 56, 40]));
        assert_eq!(grid("1,1,2147483647"), Ok([1, 1, 2147483647]));
        let wrong = [
            "0,1,1",
            "1,1",
            "1,1,1,1",
            "a,1,1",
            "65536,32768,1",
            "2097152,2097152,2097152",
            "18446744073709551616,1,1",
            "-1,1,1",
            "",
        ];
        for wrong in wrong {
            assert!(grid(wrong).is_err(), "{wrong}");
        }
        assert_eq!(spacing("1.5, 1,1e-1"), Ok([1.5, 1.0, 0.1]));
        for wrong in ["0,1,1", "1,1", "nan,1,1", "inf,1,1", "-1,1,1"] {
            assert!(spacing(wrong).is_err(), "{wrong}");
        }
    }
}
