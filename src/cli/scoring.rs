//! How surfaces are measured: options of the commands that score.

use clap::Args;
use obelisk::metrics::{Surface, Surfaces};
use obelisk::values;

/// Options of metrics of surfaces.
#[derive(Debug, Args)]
pub struct ScoringArguments {
    /// How far apart surfaces may be that the surface Dice takes for the same, in mm
    #[arg(long, value_name = "MM", default_value = "1", value_parser = values::not_negative::<f64>)]
    tolerance: f64,
    /// What surfaces are made of
    #[arg(long, value_name = "KIND", default_value = "elements")]
    surface: Surface,
    /// The distance of a label that only one of the maps has, in mm [default: infinite]
    #[arg(long, value_name = "MM", value_parser = values::not_negative::<f64>)]
    missing: Option<f64>,
}

impl ScoringArguments {
    pub fn surfaces(&self) -> Surfaces {
        Surfaces {
            definition: self.surface,
            tolerance: self.tolerance,
            missing: self.missing.unwrap_or(f64::INFINITY),
        }
    }
}
