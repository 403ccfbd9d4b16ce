//! WGSL sources and their specialisation.
//!
//! A shader is WGSL on disk, but for the structs of its uniforms, which Rust declares ([`params!`](crate::params)). What differs
//! between its uses stands in lines `const NAME: TYPE = VALUE;`, and [`Shader::specialise`] replaces the values: constants
//! rather than `override`s, because array sizes and loop bounds known to the shader compiler let it keep accumulators in
//! registers. Loops that drivers would not unroll are unrolled in the text (`shader/unroll.rs`).

mod unroll;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod texels;

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

    /// Bytes of the largest texture: a row less than WebGPU promises, because 2ⁿ rows are avoided.
    pub fn most_bytes(self) -> u64 {
        8191 * Texel::ROW * self.bytes()
    }
}

/// A WGSL module: one file, after the shared pieces of `shaders/common/` that it needs. Made by [`shader!`](crate::shader!).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shader {
    pub(crate) name: &'static str,
    pub(crate) parts: &'static [&'static str],
    pub(crate) structs: &'static [&'static Struct],
    /// All loops end, with the parameters that this crate's operations give; they are compiled without counters then. Only
    /// this crate's macro sets it: a loop without an end is undefined behaviour in a shader.
    pub(crate) loops_end: bool,
}

/// The module of a WGSL file, for an operation outside of this crate. The path is taken from the file that says it, as
/// `include_str!` does. Names of the shared pieces in [`COMMON`](crate::shader::COMMON) that the module needs may follow, then
/// its uniform structs, which [`params!`](crate::params) declares:
///
/// ```ignore
/// const SQUARE: Shader = obelisk::shader!("square.wgsl", "common/divide"; SquareParams);
/// ```
///
/// On the device its loops carry counters, because a loop without an end is undefined behaviour there. They cost some time;
/// [`Dispatch::assume_loops_end`](crate::op::Dispatch::assume_loops_end) leaves them out.
#[macro_export]
macro_rules! shader {
    ($path:literal $(, $common:literal)* $(; $($params:ty),+)?) => {
        $crate::shader::Shader::new(
            $path,
            const { &[$($crate::shader::common($common),)* include_str!($path)] },
            const { &[$($(<$params as $crate::shader::Params>::STRUCT),+)?] },
        )
    };
}

/// `own!("conv3d")` or `own!("obelisk", "common/trilinear"; Params)`: the module of this crate's `shaders/NAME.wgsl`, after the
/// shared pieces that it uses, with the uniform structs that [`params!`](crate::params) declared. Operations know it as
/// `shader!`, by `crate::op`.
macro_rules! own {
    ($name:literal $(, $common:literal)* $(; $($params:ty),+)?) => {
        $crate::shader::Shader {
            name: $name,
            parts: &[
                $(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $common, ".wgsl")),)*
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")),
            ],
            structs: &[$($(<$params as $crate::shader::Params>::STRUCT),+)?],
            loops_end: true,
        }
    };
}
pub(crate) use own;

macro_rules! pieces {
    ($($name:literal),* $(,)?) => {
        &[$((
            concat!("common/", $name),
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/common/", $name, ".wgsl")),
        )),*]
    };
}

/// The shared pieces of WGSL by name, for [`shader!`](crate::shader!): all of `shaders/common/`. The first lines of each say what
/// it is for and what a module that uses it must declare.
pub const COMMON: &[(&str, &str)] = pieces![
    "classes",
    "conv3d_image",
    "conv3d_in_place",
    "conv3d_labels",
    "conv3d_lanes",
    "conv3d_map",
    "conv3d_plain",
    "conv3d_sources1",
    "conv3d_sources2",
    "conv3d_sources3",
    "conv3d_store",
    "conv3d_upstream_lanes",
    "conv3d_upstream_plain",
    "divide",
    "field",
    "fixed_point",
    "fixed_point_add",
    "lanes",
    "max_pool",
    "normal",
    "obelisk",
    "obelisk_cells",
    "obelisk_near",
    "obelisk_parts",
    "obelisk_upstream",
    "obelisk_upstream_fours",
    "obelisk_voxels",
    "random",
    "separable",
    "sum64",
    "trilinear",
    "update",
    "walk",
    "workgroup_reduction",
];

/// The text of one of the [`COMMON`] pieces, such as `common/divide`.
///
/// # Panics
/// Where there is none of that name: in a constant, the program does not compile.
pub const fn common(name: &str) -> &'static str {
    let mut i = 0;
    while i < COMMON.len() {
        if same(COMMON[i].0.as_bytes(), name.as_bytes()) {
            return COMMON[i].1;
        }
        i += 1;
    }
    panic!("shaders/common/ has no such piece");
}

/// `==`, which constants can't call.
const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// A struct that shaders know by the name and members that it has in Rust.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Struct {
    /// Its name in WGSL.
    pub name: &'static str,
    /// Name and WGSL type of each member.
    pub members: &'static [(&'static str, &'static str)],
    /// The structs among the members.
    pub inner: &'static [Option<&'static Struct>],
}

impl Struct {
    /// Appends the declaration, after those of the members, unless it is there.
    fn declare(&'static self, declared: &mut Vec<&'static Struct>, text: &mut String) {
        if declared.contains(&self) {
            return;
        }
        self.inner
            .iter()
            .flatten()
            .for_each(|inner| inner.declare(declared, text));
        declared.push(self);
        let members: Vec<String> = self
            .members
            .iter()
            .map(|(name, kind)| format!("{name}: {kind}"))
            .collect();
        writeln!(text, "struct {} {{ {} }}", self.name, members.join(", ")).expect("writing to a string");
    }
}

/// What a member of a [`params!`](crate::params) struct can be: `u32`, `i32`, `f32`, or, as the first member, another such
/// struct whose size is a multiple of 16 bytes.
pub trait Member {
    /// The struct, where it is one.
    const INNER: Option<&'static Struct>;

    /// Appends its 32-bit words as the shader reads them.
    fn append(&self, words: &mut Vec<u32>);
}

macro_rules! scalar {
    ($($scalar:ty: $bits:expr),*) => {
        $(impl Member for $scalar {
            const INNER: Option<&'static Struct> = None;
            fn append(&self, words: &mut Vec<u32>) {
                words.push($bits(*self));
            }
        })*
    };
}
scalar!(u32: |v| v, i32: |v| v as u32, f32: f32::to_bits);

/// A kernel's uniform: a Rust struct that [`params!`](crate::params) made.
pub trait Params: Member {
    /// The WGSL struct.
    const STRUCT: &'static Struct;
}

/// The words of a kernel's uniform, and which struct they fill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uniform {
    /// The struct.
    pub of: &'static Struct,
    /// Its 32-bit words.
    pub words: Vec<u32>,
}

impl Uniform {
    /// The uniform of a kernel without parameters.
    pub const NONE: Uniform = Uniform {
        of: &Struct {
            name: "None",
            members: &[],
            inner: &[],
        },
        words: Vec::new(),
    };
}

/// Declares the parameters of a kernel once: the Rust struct whose members, `u32`, `i32` and `f32`, are those of the WGSL
/// struct of the same name. `shader!("NAME"; Struct)` puts the declaration before the module, which binds it with
/// `@group(0) @binding(0) var<uniform> params: Struct;`.
///
/// ```
/// obelisk::params! {
///     /// Of the kernel in square.wgsl.
///     pub struct Square {
///         /// Vec4s to square.
///         count: u32,
///         scale: f32,
///     }
/// }
/// let uniform: obelisk::shader::Uniform = Square { count: 3, scale: 0.5 }.into();
/// assert_eq!(uniform.words, [3, 0.5f32.to_bits()]);
/// ```
#[macro_export]
macro_rules! params {
    ($(#[$outer:meta])* $vis:vis struct $name:ident { $($(#[$inner:meta])* $member:ident: $kind:ident),* $(,)? }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug)]
        $vis struct $name {
            $($(#[$inner])* #[allow(missing_docs)] pub $member: $kind,)*
        }

        impl $crate::shader::Member for $name {
            const INNER: Option<&'static $crate::shader::Struct> =
                Some(<$name as $crate::shader::Params>::STRUCT);
            fn append(&self, words: &mut Vec<u32>) {
                $($crate::shader::Member::append(&self.$member, words);)*
            }
        }

        impl $crate::shader::Params for $name {
            const STRUCT: &'static $crate::shader::Struct = &$crate::shader::Struct {
                name: stringify!($name),
                members: &[$((stringify!($member), stringify!($kind))),*],
                inner: &[$(<$kind as $crate::shader::Member>::INNER),*],
            };
        }

        impl From<$name> for $crate::shader::Uniform {
            fn from(params: $name) -> Self {
                let mut words = Vec::new();
                $crate::shader::Member::append(&params, &mut words);
                $crate::shader::Uniform { of: <$name as $crate::shader::Params>::STRUCT, words }
            }
        }
    };
}

impl Shader {
    /// The module of these texts, one after the other, with these uniform structs before them;
    /// [`shader!`](crate::shader!) makes it of files. `name` stands in plans and errors.
    pub const fn new(
        name: &'static str,
        parts: &'static [&'static str],
        structs: &'static [&'static Struct],
    ) -> Shader {
        Shader {
            name,
            parts,
            structs,
            loops_end: false,
        }
    }

    /// What plans and errors call it: the name of the file.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The texts of the shared pieces, then the file's.
    pub fn parts(&self) -> &'static [&'static str] {
        self.parts
    }

    /// The structs of its uniforms.
    pub fn structs(&self) -> &'static [&'static Struct] {
        self.structs
    }

    /// The module's text with each named constant's value replaced.
    ///
    /// Panics when a constant is not declared: the Rust side of a kernel and its file disagree.
    pub fn specialise(&self, constants: &[(&'static str, u32)]) -> String {
        let mut left: Vec<_> = constants.to_vec();
        let mut text = String::new();
        let mut declared = Vec::new();
        self.structs
            .iter()
            .for_each(|s| s.declare(&mut declared, &mut text));
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
            "shader {} declares no constants {left:?}",
            self.name
        );
        unroll::unrolled(&text)
    }

    /// The texels that a texture in place of the storage buffer at this binding would have. `None` where the module only
    /// reads other types there, or different ones by entry point, or asks for the length; and in browsers, where no kernel
    /// reads through textures.
    pub fn texel(&self, binding: usize) -> Option<Texel> {
        cfg_select! {
            target_arch = "wasm32" => {
                let _ = binding;
                None
            }
            _ => texels::texel(self, binding),
        }
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
    fn every_shared_piece_is_there_for_others() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/common");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .map(|stem| format!("common/{stem}"))
            .collect();
        files.sort();
        let names: Vec<&str> = COMMON.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, files, "COMMON in src/shader.rs");
        assert_eq!(
            common("common/divide"),
            COMMON.iter().find(|c| c.0 == "common/divide").unwrap().1
        );
    }

    #[test]
    fn only_kernels_that_this_crate_made_have_no_loop_counters() {
        use crate::op::Dispatch;
        let mut graph = crate::graph::Graph::new();
        let x = graph.input("x", crate::tensor::Spec::flat(&[5])).unwrap();
        let y = graph.push1(crate::op::add::Add, &[x, x]).unwrap();
        graph.keep("y", y);
        let plan = crate::plan::Plan::new(&graph, &crate::op::Caps::PORTABLE).unwrap();
        let own = &plan.launches[0].dispatch;
        assert!(own.shader.loops_end);
        // As others may change it, or take it apart and make it anew.
        assert!(!own.clone().with_params(Uniform::NONE).shader.loops_end);
        assert!(!own.clone().with_constants(Vec::new()).shader.loops_end);
        assert!(!Dispatch::new(own.shader(), own.entry()).shader.loops_end);
        assert!(!crate::shader!("../examples/square.wgsl").loops_end);
        #[allow(unsafe_code)] // SAFETY: nothing runs.
        let dispatch = unsafe { Dispatch::new(own.shader(), "main").assume_loops_end() };
        assert!(dispatch.shader.loops_end);
    }

    #[test]
    fn specialisation_replaces_only_what_is_named() {
        let shader = Shader::new(
            "test",
            &["const A: u32 = 1u; // one", "const AB: i32 = 2;\nfn f() {}"],
            &[],
        );
        assert_eq!(
            shader.specialise(&[("A", 7)]),
            "const A: u32 = 7u;\nconst AB: i32 = 2;\nfn f() {}\n"
        );
        assert_eq!(
            shader.specialise(&[("AB", 3)]),
            "const A: u32 = 1u; // one\nconst AB: i32 = 3;\nfn f() {}\n"
        );
    }

    params! {
        struct Inner { a: u32, b: u32, c: u32, d: f32 }
    }
    params! {
        struct Outer { inner: Inner, low: i32 }
    }

    #[test]
    fn parameters_are_declared_and_laid_out_once() {
        let shader = Shader::new("test", &["fn f() {}"], &[Outer::STRUCT, Inner::STRUCT]);
        assert_eq!(
            shader.specialise(&[]),
            "struct Inner { a: u32, b: u32, c: u32, d: f32 }\nstruct Outer { inner: Inner, low: i32 }\nfn f() {}\n"
        );
        let inner = Inner {
            a: 1,
            b: 2,
            c: 3,
            d: 1.0,
        };
        let uniform: Uniform = Outer { inner, low: -1 }.into();
        assert_eq!(uniform.words, [1, 2, 3, 1.0f32.to_bits(), u32::MAX]);
    }

    #[test]
    #[should_panic(expected = "declares no constants")]
    fn an_unknown_constant_is_a_programming_error() {
        Shader::new("test", &["fn f() {}"], &[]).specialise(&[("A", 7)]);
    }
}
