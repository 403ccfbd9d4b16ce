//! The ranks that `train` runs on: one process, or all that an MPI's launcher has started.

use anyhow::Context;
use obelisk::gpu::{AdapterSummary, Device, DeviceOptions, adapters};
#[cfg(all(feature = "mpi", unix))]
use obelisk::train::mpi::Mpi;
use obelisk::train::{Alone, Exchange, TrainError};

use super::device;
use super::interrupt::Interrupted;
use super::print::errln;
use super::{Usage, message};

/// This process among the ranks.
pub struct Ranks(Box<dyn Member>);

/// What carries the messages, and what it knows of this machine.
trait Member: Exchange {
    /// This rank among those of the same machine, from 0.
    fn local(&self) -> usize;

    /// Leaves the others, after a word of what went wrong here, if anything.
    fn leave(self: Box<Self>, why: Option<&str>);
}

impl Member for Alone {
    fn local(&self) -> usize {
        0
    }

    fn leave(self: Box<Self>, _: Option<&str>) {}
}

#[cfg(all(feature = "mpi", unix))]
impl Member for Mpi {
    fn local(&self) -> usize {
        self.place().local
    }

    fn leave(self: Box<Self>, why: Option<&str>) {
        match why {
            None => self.finish(),
            Some(why) => self.give_up(why),
        }
    }
}

/// The ranks that a launcher has started.
#[cfg(all(feature = "mpi", unix))]
fn join(_: usize) -> anyhow::Result<Box<dyn Member>> {
    let overdue = |gone| {
        errln!("error: {gone}");
        std::process::exit(1);
    };
    Ok(Box::new(Mpi::join(overdue).map_err(anyhow::Error::msg)?))
}

/// They can't be reached.
#[cfg(not(all(feature = "mpi", unix)))]
fn join(started: usize) -> anyhow::Result<Box<dyn Member>> {
    errln!(
        "{started} processes were started together, but this obelisk was built without MPI (feature `mpi`): each trains by \
         itself"
    );
    Ok(Box::new(Alone))
}

impl Ranks {
    /// Those that the launcher has started.
    ///
    /// # Errors
    /// An MPI that can't be joined.
    pub fn join() -> anyhow::Result<Ranks> {
        Ok(Ranks(match processes(|name| std::env::var(name).ok()) {
            0 | 1 => Box::new(Alone),
            started => join(started)?,
        }))
    }

    pub fn exchange(&mut self) -> &mut dyn Exchange {
        &mut *self.0
    }

    pub fn size(&self) -> usize {
        self.0.size()
    }

    /// Whether this rank speaks and writes.
    pub fn is_first(&self) -> bool {
        self.0.rank() == 0
    }

    /// Refuses ranks that were started differently.
    pub fn check_same(&mut self, started: String) -> anyhow::Result<()> {
        let all = self.0.gather(started.into()).map_err(TrainError::from)?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(rank) => Err(Usage(format!(
                "rank {rank} was started with other options or settings than rank 0; one call starts all ranks"
            ))
            .into()),
        }
    }

    /// Opens this rank's device. All have the forms of the first, which `open` finds, and adapters of one kind; each takes the one
    /// of its place on its machine.
    pub fn open(
        &mut self,
        options: &DeviceOptions,
        open: impl FnOnce(&DeviceOptions) -> anyhow::Result<Device>,
    ) -> anyhow::Result<Device> {
        if self.size() == 1 {
            return open(options);
        }
        let (rank, size) = (self.0.rank(), self.size());
        let all = pollster::block_on(adapters(options.backend.as_deref()))?;
        let number = adapter_of(&all, options.adapter.as_deref(), self.0.local());
        let mut options = DeviceOptions {
            adapter: number
                .map(|number| number.to_string())
                .or(options.adapter.clone()),
            ..options.clone()
        };
        let first = match rank {
            0 => Some(open(&options)?),
            _ => None,
        };
        let forms = first
            .as_ref()
            .map_or(String::new(), |device| device.caps().forms.to_string());
        let forms = self.0.gather(forms.into()).map_err(TrainError::from)?;
        let device = match first {
            Some(device) => device,
            None => {
                let forms = String::from_utf8_lossy(&forms[0]);
                options.forms = forms
                    .parse()
                    .map_err(anyhow::Error::msg)
                    .context("the forms of rank 0")?;
                device::open_tuned(&options)?
            }
        };
        let adapter = device.adapter();
        let number = number.map_or(String::new(), |number| format!(" {number}"));
        errln!(
            "rank {rank} of {size}: adapter{number}: {} ({})",
            adapter.name,
            adapter.backend
        );
        let kind = format!("{} ({})", adapter.name, adapter.driver);
        let kinds = self.0.gather(kind.into()).map_err(TrainError::from)?;
        if let Some(other) = kinds.iter().position(|kind| *kind != kinds[0]) {
            anyhow::bail!(
                "rank {other} has the adapter {} and rank 0 {}; ranks need adapters and drivers of one kind, to hold the same \
                 weights",
                String::from_utf8_lossy(&kinds[other]),
                String::from_utf8_lossy(&kinds[0])
            );
        }
        Ok(device)
    }

    /// Leaves the other ranks, after a word of what went wrong here.
    pub fn leave(self, done: anyhow::Result<()>) -> anyhow::Result<()> {
        let (rank, size) = (self.0.rank(), self.size());
        match done {
            // All ranks stop together.
            Err(error) if !error.is::<Interrupted>() => {
                self.0.leave(Some(&message(&error)));
                match size {
                    1 => Err(error),
                    _ => Err(error.context(format!("rank {rank}"))),
                }
            }
            done => {
                self.0.leave(None);
                done
            }
        }
    }
}

/// How many processes a launcher started with this one, by the variables that Open MPI, those with PMI (MPICH, Intel MPI) and
/// SLURM's srun set.
fn processes(variable: impl Fn(&str) -> Option<String>) -> usize {
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"]
        .iter()
        .find_map(|name| variable(name)?.parse().ok())
        .unwrap_or(1)
}

/// The number of the adapter that a process takes, of those that the name fits or else of the kind that is fastest: one each, and
/// again from the first where there are fewer.
fn adapter_of(all: &[AdapterSummary], wanted: Option<&str>, local: usize) -> Option<usize> {
    let fits = |adapter: &&AdapterSummary| match wanted {
        Some(wanted) => adapter.name.to_lowercase().contains(&wanted.to_lowercase()),
        None => (&adapter.kind, &adapter.name) == (&all[0].kind, &all[0].name),
    };
    if wanted.is_some_and(|wanted| wanted.parse::<usize>().is_ok()) {
        return None; // one by its number
    }
    let numbers: Vec<usize> = (0..all.len()).filter(|i| fits(&&all[*i])).collect();
    (!numbers.is_empty()).then(|| numbers[local % numbers.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_say_how_many_they_have_started() {
        let of = |set: &[(&str, &str)]| {
            processes(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(of(&[]), 1);
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "3")]), 3);
        assert_eq!(of(&[("PMI_SIZE", "2"), ("SLURM_STEP_NUM_TASKS", "4")]), 2);
        assert_eq!(of(&[("PMI_SIZE", "many"), ("SLURM_STEP_NUM_TASKS", "4")]), 4);
    }
}
