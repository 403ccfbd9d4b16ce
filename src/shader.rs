//! WGSL sources and their specialisation.
//!
//! A shader is valid WGSL on disk. What differs between its uses stands in lines `const NAME: TYPE = VALUE;`,
//! and [`Shader::specialise`] replaces the values: constants rather than `override`s, because array sizes and
//! loop bounds known to the shader compiler let it unroll and keep accumulators in registers.

use std::fmt::Write;

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
    #[should_panic(expected = "declares no constants")]
    fn an_unknown_constant_is_a_programming_error() {
        Shader {
            name: "test",
            parts: &["fn f() {}"],
        }
        .specialise(&[("A", 7)]);
    }
}
