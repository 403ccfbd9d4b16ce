//! Which [`Forms`] of the kernels a device takes: built in, given, or measured before and kept on disk.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::GpuError;
use super::cache::{self, fnv1a};
use crate::file::write_private;
use crate::op::Forms;

/// Which forms a device is to take.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FormsChoice {
    /// The adapter's built-in ones.
    #[default]
    BuiltIn,
    /// Those that the cache has from a measurement on this adapter, or else the built-in ones. [`crate::tune::open`] then
    /// measures.
    Auto,
    /// As built in, until [`crate::tune::open`] has measured, whatever the cache has.
    Measure,
    /// These.
    Given(Forms),
}

impl From<Forms> for FormsChoice {
    fn from(forms: Forms) -> Self {
        FormsChoice::Given(forms)
    }
}

impl FromStr for FormsChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(FormsChoice::Auto),
            "measure" => Ok(FormsChoice::Measure),
            "built-in" => Ok(FormsChoice::BuiltIn),
            "texels=on" => Ok(FormsChoice::Given(Forms::TEXELS)),
            "texels=off" => Ok(FormsChoice::Given(Forms::PORTABLE)),
            _ => Err(format!(
                "`{text}` is none of auto, measure, built-in, texels=on and texels=off"
            )),
        }
    }
}

/// Where a device's forms come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormsSource {
    /// The program.
    BuiltIn,
    /// The caller.
    Given,
    /// An earlier measurement, in this file.
    Kept(PathBuf),
}

impl fmt::Display for FormsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FormsSource::BuiltIn => f.write_str("built in"),
            FormsSource::Given => f.write_str("given"),
            FormsSource::Kept(path) => write!(f, "measured, {}", path.display()),
        }
    }
}

/// The forms of a device and where they come from, where its measured ones are kept, and what they can be.
#[derive(Debug)]
pub(super) struct DeviceForms {
    pub(super) forms: Forms,
    pub(super) source: FormsSource,
    file: Option<PathBuf>,
    limits: FormsLimits,
}

/// What of an adapter limits its forms.
#[derive(Clone, Debug)]
pub(super) struct FormsLimits {
    /// Name of the adapter, for errors.
    pub(super) adapter: String,
    /// A driver that runs shaders on the CPU.
    pub(super) cpu: bool,
    /// Rows and columns that a texture may have.
    pub(super) texture_side: u32,
}

impl FormsLimits {
    /// Whether the adapter can take these forms, or what is in the way.
    pub(super) fn allow(&self, forms: &Forms) -> Result<(), GpuError> {
        let problem = match () {
            _ if forms.texels && !self.cpu => {
                "only drivers on the CPU gain from reading through textures".into()
            }
            // WebGPU's default, which holds any binding of up to 128 MiB.
            _ if forms.texels && self.texture_side < 8192 => {
                format!("its textures have no more than {} rows", self.texture_side)
            }
            _ => return Ok(()),
        };
        Err(GpuError::Forms {
            forms: *forms,
            adapter: self.adapter.clone(),
            problem,
        })
    }
}

impl DeviceForms {
    /// Settles a choice; `file` is where measured forms of this adapter are kept, if anywhere. A file that is damaged is
    /// reported and ignored.
    pub(super) fn settle(
        choice: FormsChoice,
        built_in: Forms,
        file: Option<PathBuf>,
        limits: FormsLimits,
    ) -> Result<Self, GpuError> {
        let (forms, source) = match choice {
            FormsChoice::BuiltIn | FormsChoice::Measure => (built_in, FormsSource::BuiltIn),
            FormsChoice::Auto => {
                let kept = file.as_ref().and_then(|path| Some((load(path, &limits)?, path)));
                kept.map_or((built_in, FormsSource::BuiltIn), |(forms, path)| {
                    (forms, FormsSource::Kept(path.clone()))
                })
            }
            FormsChoice::Given(forms) => {
                limits.allow(&forms)?;
                (forms, FormsSource::Given)
            }
        };
        Ok(DeviceForms {
            forms,
            source,
            file,
            limits,
        })
    }

    /// Whether measured forms are kept for later processes.
    pub(super) fn are_kept(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn allow(&self, forms: &Forms) -> Result<(), GpuError> {
        self.limits.allow(forms)
    }

    /// Writes measured forms for later processes. A file that can't be written costs the next one a measurement: it is
    /// reported.
    pub(super) fn keep(&self, forms: &Forms) {
        let Some(path) = &self.file else { return };
        let json = serde_json::to_vec(forms).expect("a flag");
        if let Err(error) = write_private(path, &json) {
            tracing::warn!("{}: {error}; the next run measures again", path.display());
        }
    }
}

/// The file of an adapter's measured forms: of its driver and processor and of this version of the program.
pub(super) fn file(folder: &Path, info: &wgpu::AdapterInfo) -> PathBuf {
    let what = format!("{} {} {}", info.name, info.driver, info.driver_info);
    let adapter = format!("{}_{:x}_{:x}", info.backend.to_str(), info.vendor, info.device);
    folder.join(file_name(
        &adapter,
        &format!("{what} {}", processor()),
        env!("CARGO_PKG_VERSION"),
    ))
}

fn file_name(adapter: &str, what: &str, version: &str) -> String {
    format!("forms_{adapter}_{:016x}_{version}.json", fnv1a(what.as_bytes()))
}

/// What of the processor decides how drivers on the CPU load: a folder may serve machines of several kinds.
fn processor() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512f") {
        return "x86_64 with AVX-512";
    }
    std::env::consts::ARCH
}

/// What a file of forms holds, if it is one and the adapter can take them.
fn load(path: &Path, limits: &FormsLimits) -> Option<Forms> {
    let bytes = match cache::read_kept(path) {
        Ok(bytes) => bytes?,
        Err(problem) => return ignored(path, &problem),
    };
    match serde_json::from_slice(&bytes) {
        Err(error) => ignored(path, &error),
        Ok(forms) => match limits.allow(&forms) {
            Err(error) => ignored(path, &error),
            Ok(()) => Some(forms),
        },
    }
}

fn ignored(path: &Path, problem: &dyn fmt::Display) -> Option<Forms> {
    tracing::warn!("{}: {problem}; the file is not used", path.display());
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT_IN: Forms = Forms::TEXELS;

    fn limits(cpu: bool, texture_side: u32) -> FormsLimits {
        FormsLimits {
            adapter: "an adapter".into(),
            cpu,
            texture_side,
        }
    }

    #[test]
    fn choices_are_read_and_mistakes_named() {
        let read = |text: &str| text.parse::<FormsChoice>();
        assert_eq!(read("auto"), Ok(FormsChoice::Auto));
        assert_eq!(read("measure"), Ok(FormsChoice::Measure));
        assert_eq!(read("built-in"), Ok(FormsChoice::BuiltIn));
        assert_eq!(read(&BUILT_IN.to_string()), Ok(BUILT_IN.into()));
        assert_eq!(read("texels=off"), Ok(Forms::PORTABLE.into()));
        for text in [
            "",
            "fast",
            "texels",
            "texels=yes",
            "texels=on,",
            "texels=on,texels=on",
            "fills=1",
        ] {
            let error = read(text).unwrap_err();
            assert!(
                error.contains(&format!("`{text}`")) && error.contains("built-in"),
                "{error}"
            );
        }
    }

    #[test]
    fn kept_forms_are_taken_and_damaged_or_impossible_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache/forms.json");
        let settle = |choice, limits| {
            DeviceForms::settle(choice, Forms::PORTABLE, Some(path.clone()), limits).unwrap()
        };
        let cpu = || limits(true, 8192);
        let device = settle(FormsChoice::Auto, cpu());
        assert_eq!(
            (device.forms, device.source.clone()),
            (Forms::PORTABLE, FormsSource::BuiltIn)
        );
        device.keep(&BUILT_IN);
        let device = settle(FormsChoice::Auto, cpu());
        assert_eq!(
            (device.forms, device.source),
            (BUILT_IN, FormsSource::Kept(path.clone()))
        );
        for (choice, limits) in [
            (FormsChoice::BuiltIn, cpu()),
            (FormsChoice::Measure, cpu()),
            (FormsChoice::Auto, limits(false, 8192)),
            (FormsChoice::Auto, limits(true, 4096)),
        ] {
            let device = settle(choice, limits);
            assert_eq!(
                (device.forms, device.source),
                (Forms::PORTABLE, FormsSource::BuiltIn)
            );
        }
        let whole = std::fs::read_to_string(&path).unwrap();
        for damaged in ["", &whole[..whole.len() - 1], r#"{"texels":1}"#] {
            std::fs::write(&path, damaged).unwrap();
            let device = settle(FormsChoice::Auto, cpu());
            assert_eq!(
                (device.forms, device.source),
                (Forms::PORTABLE, FormsSource::BuiltIn),
                "{damaged}"
            );
        }
        // What another version wrote is read as far as this one knows it.
        for (other, forms) in [
            (r#"{"texels":true,"fills":32768,"another":1}"#, BUILT_IN),
            ("{}", Forms::PORTABLE),
        ] {
            std::fs::write(&path, other).unwrap();
            let device = settle(FormsChoice::Auto, cpu());
            assert_eq!(
                (device.forms, device.source),
                (forms, FormsSource::Kept(path.clone()))
            );
        }
    }

    #[test]
    fn given_forms_that_the_adapter_has_not_are_refused() {
        let settle = |text: &str, limits| {
            DeviceForms::settle(text.parse().unwrap(), Forms::PORTABLE, None, limits).map(|d| d.forms)
        };
        assert_eq!(
            settle("texels=off", limits(false, 2048)).unwrap(),
            Forms::PORTABLE
        );
        assert_eq!(settle("texels=on", limits(true, 8192)).unwrap(), BUILT_IN);
        let error = settle("texels=on", limits(false, 8192)).unwrap_err().to_string();
        assert!(
            error.contains("an adapter") && error.contains("texels=on"),
            "{error}"
        );
        let error = settle("texels=on", limits(true, 2048)).unwrap_err().to_string();
        assert!(error.contains("2048 rows"), "{error}");
    }

    #[test]
    fn another_adapter_driver_or_version_has_another_file() {
        let names = [
            file_name("vulkan_10005_0", "llvmpipe 22.3.6", "0.1.0"),
            file_name("vulkan_10de_1", "llvmpipe 22.3.6", "0.1.0"),
            file_name("vulkan_10005_0", "llvmpipe 22.3.7", "0.1.0"),
            file_name("vulkan_10005_0", "llvmpipe 22.3.6", "0.1.1"),
        ];
        let different: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }
}
