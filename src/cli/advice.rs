//! What to do about an error of the library, in this program's options.

use obelisk::crossval::CrossvalError;
use obelisk::export::ExportError;
use obelisk::gpu::GpuError;
use obelisk::graph::GraphError;
use obelisk::host_memory::TooLarge;
use obelisk::predict::PredictError;
use obelisk::train::TrainError;
use obelisk::volume::dicom::DicomError;

/// What the user can do, where the error shows it.
pub fn advice(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let of_training = cause.downcast_ref().and_then(training);
        let of_comparison = cause.downcast_ref().and_then(comparison);
        let of_device = cause.downcast_ref().and_then(device);
        let of_prediction = match cause.downcast_ref() {
            Some(PredictError::Gpu(error)) => device(error),
            Some(PredictError::Graph(GraphError::Limit { .. })) => Some(
                "resample the scan to a coarser spacing, or use a network that was trained on a grid, which takes \
                 scans of any size",
            ),
            _ => None,
        };
        let of_export = match cause.downcast_ref() {
            Some(ExportError::NoSize { .. }) => Some("say it by --size"),
            Some(ExportError::TooLarge { .. }) => Some("export one of the --folds"),
            Some(ExportError::Regions) => Some("leave out --labels"),
            _ => None,
        };
        let of_series = match cause.downcast_ref() {
            Some(DicomError::Choice { .. }) => Some("--series NUMBER or UID chooses one"),
            _ => None,
        };
        let exists = cause.downcast_ref::<std::io::Error>();
        let exists = exists.filter(|e| e.kind() == std::io::ErrorKind::AlreadyExists);
        let limited = cause.downcast_ref().is_some_and(|memory: &TooLarge| memory.limited);
        of_training
            .or(limited.then_some("--memory allows more"))
            .or(of_comparison)
            .or(of_device)
            .or(of_prediction)
            .or(of_export)
            .or(of_series)
            .or(exists.map(|_| "--force replaces it"))
    })
}

fn training(error: &TrainError) -> Option<&'static str> {
    match error {
        TrainError::Diverged { .. } => Some("lower --learning-rate, and check the scans' intensities"),
        TrainError::NoGrid => Some("give --size"),
        TrainError::FewCases { .. } => Some("lower --batch or --accumulate, or add cases"),
        TrainError::Gpu(GpuError::OutOfMemory { .. })
        | TrainError::Graph(GraphError::Limit { .. } | GraphError::Size { .. }) => {
            Some("lower --batch or --size")
        }
        TrainError::Gpu(error) => device(error),
        _ => None,
    }
}

fn comparison(error: &CrossvalError) -> Option<&'static str> {
    match error {
        CrossvalError::Result { .. } => Some("--force trains the fold anew"),
        CrossvalError::OtherTraining { .. } => Some("--force trains it anew, another --out keeps it"),
        CrossvalError::Train(error) => training(error),
        _ => None,
    }
}

fn device(error: &GpuError) -> Option<&'static str> {
    match error {
        GpuError::Forms { .. } => Some("--forms built-in takes its own"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_found_behind_other_errors() {
        let diverged = || TrainError::Diverged {
            epoch: 3,
            step: 1,
            cases: vec!["case".into()],
            what: "the loss".into(),
        };
        for error in [
            anyhow::Error::from(diverged()),
            anyhow::Error::from(diverged()).context("unet fold 1"),
            anyhow::Error::from(CrossvalError::Train(diverged())).context("unet fold 1"),
        ] {
            assert!(
                advice(&error).is_some_and(|a| a.contains("--learning-rate")),
                "{error:#}"
            );
        }
        let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        let exists = anyhow::Error::from(exists).context("labels.nii");
        assert_eq!(advice(&exists), Some("--force replaces it"));
        assert_eq!(advice(&anyhow::anyhow!("something else")), None);
    }
}
