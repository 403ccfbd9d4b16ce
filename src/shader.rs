//! WGSL sources and their specialisation.
//!
//! A shader is valid WGSL on disk. What differs between its uses stands in lines `const NAME: TYPE = VALUE;`,
//! and [`Shader::specialise`] replaces the values: constants rather than `override`s, because array sizes and
//! loop bounds known to the shader compiler let it unroll and keep accumulators in registers.

use std::fmt::Write;

/// What a texel of a texture holds that a kernel reads in a storage buffer's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Texel {
    /// One f32, for `array<f32>`.
    One,
    /// Four, for `array<vec4f>`.
    Four,
}

impl Texel {
    /// Texels in a row of the texture; the buffer's elements follow each other along the rows. WebGPU promises 8192 rows
    /// of 8192 texels: 128 MiB, the largest binding, fill 2048 or 8192 rows.
    pub const ROW: u64 = 4096;

    /// Bytes of a texel.
    pub fn bytes(self) -> u64 {
        match self {
            Texel::One => 4,
            Texel::Four => 16,
        }
    }

    fn element(self) -> &'static str {
        match self {
            Texel::One => "f32",
            Texel::Four => "vec4f",
        }
    }

    fn of_element(element: &str) -> Option<Texel> {
        [Texel::One, Texel::Four]
            .into_iter()
            .find(|t| t.element() == element)
    }
}

/// A WGSL module of `shaders/`, with the shared pieces that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shader {
    /// File name in `shaders/` without its ending.
    pub name: &'static str,
    /// Shared pieces from `shaders/common/`, then the file itself.
    pub parts: &'static [&'static str],
}

/// `shader!("conv3d")` or `shader!("obelisk", "common/trilinear")`: the module of `shaders/NAME.wgsl`, after the
/// shared pieces that it uses.
#[macro_export]
macro_rules! shader {
    ($name:literal $(, $common:literal)*) => {
        $crate::shader::Shader {
            name: $name,
            parts: &[
                $(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $common, ".wgsl")),)*
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")),
            ],
        }
    };
}

impl Shader {
    /// The module's text with each named constant's value replaced.
    ///
    /// Panics when a constant is not declared: the Rust side of a kernel and its file disagree.
    pub fn specialise(&self, constants: &[(&'static str, u32)]) -> String {
        let mut left: Vec<_> = constants.to_vec();
        let mut text = String::new();
        for line in self.parts.iter().flat_map(|part| part.lines()) {
            match declared_constant(line).and_then(|name| left.iter().position(|(n, _)| *n == name)) {
                Some(at) => {
                    let (_, value) = left.swap_remove(at);
                    let (head, _) = line.split_once('=').expect("a constant has a value");
                    let suffix = if head.contains("u32") { "u" } else { "" };
                    writeln!(text, "{head}= {value}{suffix};").expect("writing to a string");
                }
                None => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        assert!(
            left.is_empty(),
            "shaders/{}.wgsl declares no constants {left:?}",
            self.name
        );
        text
    }

    /// The texels that a texture in place of the storage buffer at this binding would have. `None` where the module only
    /// reads other types there, or different ones by entry point.
    pub fn texel(&self, binding: usize) -> Option<Texel> {
        let text = self.parts.concat();
        let start = format!("@group(0) @binding({binding})");
        let declared = text
            .match_indices(&start)
            .filter_map(|(at, _)| text[at..].lines().next());
        let mut texels = declared
            .filter_map(|line| read_only(&text, line))
            .map(|(_, _, element)| Texel::of_element(element));
        let first = texels.next()??;
        texels.all(|texel| texel == Some(first)).then_some(first)
    }
}

/// The binding, name and element type of what a line declares as a storage buffer for reading; of what is no array,
/// none. `text` holds the line and the `alias` behind the element type, if there is one.
fn read_only<'a>(text: &'a str, line: &'a str) -> Option<(usize, &'a str, &'a str)> {
    let (binding, rest) = line.strip_prefix("@group(0) @binding(")?.split_once(')')?;
    let rest = rest.trim_start().strip_prefix("var<storage, read> ")?;
    let (name, kind) = rest.split_once(';')?.0.split_once(": ")?;
    let element = kind
        .strip_prefix("array<")
        .and_then(|kind| kind.strip_suffix('>'))
        .unwrap_or("");
    let alias = || {
        let start = format!("alias {element} = ");
        text.lines()
            .find_map(|line| line.strip_prefix(&start)?.split(';').next())
    };
    let meant = match Texel::of_element(element) {
        Some(_) => element,
        None => alias().unwrap_or(element),
    };
    Some((binding.parse().ok()?, name, meant))
}

/// A module's text that reads some bindings through textures: `NAME[i]` becomes the texel of that number.
pub(crate) fn through_texels(text: &str, bindings: &[(usize, Texel)]) -> String {
    let mut declared = Vec::new();
    let mut result = String::new();
    for line in text.lines() {
        let found = read_only(text, line)
            .and_then(|(binding, name, _)| Some((name, bindings.iter().find(|(at, _)| *at == binding)?)));
        let Some((name, (binding, texel))) = found else {
            result.push_str(line);
            result.push('\n');
            continue;
        };
        declared.push(name);
        let (format, element, part) = match texel {
            Texel::One => ("r32float", texel.element(), ".x"),
            Texel::Four => ("rgba32float", texel.element(), ""),
        };
        let (mask, shift) = (Texel::ROW - 1, Texel::ROW.trailing_zeros());
        writeln!(
            result,
            "@group(0) @binding({binding}) var {name}: texture_storage_2d<{format}, read>;\n\
             fn {name}_texel(i: u32) -> {element} {{ return textureLoad({name}, vec2u(i & {mask}u, i >> {shift}u)){part}; }}"
        )
        .expect("writing to a string");
    }
    declared.iter().fold(result, |text, name| texels_of(&text, name))
}

/// Replaces `NAME[i]` by `NAME_texel(u32(i))`.
fn texels_of(text: &str, name: &str) -> String {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let start = format!("{name}[");
    let Some(at) = text
        .match_indices(&start)
        .map(|(at, _)| at)
        .find(|at| !text[..*at].ends_with(part_of_name))
    else {
        return text.to_owned();
    };
    let (before, inside) = (&text[..at], &text[at + start.len()..]);
    let mut depth = 1;
    let end = inside.find(|c| {
        depth += match c {
            '[' => 1,
            ']' => -1,
            _ => 0,
        };
        depth == 0
    });
    let end = end.expect("brackets close");
    let rest = texels_of(&inside[end + 1..], name);
    format!(
        "{before}{name}_texel(u32({})){rest}",
        texels_of(&inside[..end], name)
    )
}

fn declared_constant(line: &str) -> Option<&str> {
    line.strip_prefix("const ")?
        .split_once(':')
        .map(|(name, _)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specialisation_replaces_only_what_is_named() {
        let shader = Shader {
            name: "test",
            parts: &["const A: u32 = 1u; // one", "const AB: i32 = 2;\nfn f() {}"],
        };
        assert_eq!(
            shader.specialise(&[("A", 7)]),
            "const A: u32 = 7u;\nconst AB: i32 = 2;\nfn f() {}\n"
        );
        assert_eq!(
            shader.specialise(&[("AB", 3)]),
            "const A: u32 = 1u; // one\nconst AB: i32 = 3;\nfn f() {}\n"
        );
    }

    #[test]
    fn buffers_are_read_as_texels_where_all_entry_points_agree_on_them() {
        let shader = Shader {
            name: "test",
            parts: &[
                "alias Element = vec4f;\n@group(0) @binding(1) var<storage, read> x: array<Element>;",
                "@group(0) @binding(2) var<storage, read> a: array<f32>; // for one\n\
                 @group(0) @binding(2) var<storage, read> b: array<u32>;\n\
                 @group(0) @binding(3) var<storage, read_write> y: array<f32>;\n\
                 @group(0) @binding(4) var<storage, read> s: Sums;\n\
                 @group(0) @binding(5) var<storage, read> at: array<f32>;\n\
                 fn f() { y[0] = x[i + i32(at[2])].x + s.x[1] + max[0]; }",
            ],
        };
        let texels = [0, 1, 2, 3, 4, 5].map(|binding| shader.texel(binding));
        assert_eq!(
            texels,
            [None, Some(Texel::Four), None, None, None, Some(Texel::One)]
        );
        let text = through_texels(&shader.specialise(&[]), &[(1, Texel::Four), (5, Texel::One)]);
        assert!(text.contains("@group(0) @binding(1) var x: texture_storage_2d<rgba32float, read>;"));
        assert!(text.contains("@group(0) @binding(2) var<storage, read> a: array<f32>; // for one"));
        assert!(
            text.contains("y[0] = x_texel(u32(i + i32(at_texel(u32(2))))).x + s.x[1] + max[0];"),
            "{text}"
        );
    }

    #[test]
    #[should_panic(expected = "declares no constants")]
    fn an_unknown_constant_is_a_programming_error() {
        Shader {
            name: "test",
            parts: &["fn f() {}"],
        }
        .specialise(&[("A", 7)]);
    }
}
