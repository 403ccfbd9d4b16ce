//! A folder's scans divided among machines.

use std::fmt;
use std::str::FromStr;

/// Part `number`, from 0, of `of`: the scans whose ids' CRC-32 leaves that number. Whatever else comes into the folder, a scan stays
/// in its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    number: u32,
    of: u32,
}

impl Part {
    /// Whether a scan of this id is in it.
    pub fn has(self, id: &str) -> bool {
        crc32fast::hash(id.as_bytes()) % self.of == self.number
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        let numbers = text.split_once('/').and_then(|(number, of)| {
            let number = number.trim().parse().ok()?;
            Some((number, of.trim().parse().ok()?))
        });
        match numbers {
            Some((number, of)) if number < of => Ok(Part { number, of }),
            Some((number, of)) if of > 0 => Err(format!(
                "there is no part {number}: they are 0/{of} to {}/{of}",
                of - 1
            )),
            _ => Err("it must be a part, from 0, and how many there are, such as 0/4".into()),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scan_is_in_one_part_and_stays_there() {
        let parts: Vec<Part> = (0..4).map(|k| format!("{k}/4").parse().unwrap()).collect();
        let mut counts = [0; 4];
        for i in 0..1000 {
            let id = format!("hippocampus_{i:03}");
            let of: Vec<usize> = (0..4).filter(|k| parts[*k].has(&id)).collect();
            assert_eq!(of.len(), 1, "{id}");
            counts[of[0]] += 1;
        }
        assert!(
            counts.iter().all(|count| (200..300).contains(count)),
            "{counts:?}"
        );
        // CRC-32 of "123456789" is 0xcbf43926: another version divides a folder in the same way.
        assert!("6/16".parse::<Part>().unwrap().has("123456789"));
    }

    #[test]
    fn parts_that_are_none_are_refused() {
        assert_eq!(" 3/4".parse::<Part>().unwrap().to_string(), "3/4");
        assert_eq!(
            "4/4".parse::<Part>().unwrap_err(),
            "there is no part 4: they are 0/4 to 3/4"
        );
        for wrong in ["", "1", "/", "-1/4", "1/0", "0/0", "1/4/4", "a/b", "1/4294967296"] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }
}
