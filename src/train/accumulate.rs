//! Steps over several batches, on one process or divided among ranks. Gradients come to the host, where they are added in the
//! order of the batches, whoever computed them: IEEE addition in a fixed order gives every number of ranks the same bytes. Each
//! rank adds a part of the numbers, so that twice the gradients' bytes travel to and from a rank, however many there are.

use web_time::Instant;

use super::exchange::{Exchange, ExchangeError, from_bytes, share, to_bytes};
use super::{Steps, TrainError};
use crate::gpu::{Device, Executable, Numbers, Reading, Weights};

/// The ranks of a training, and what this one carries from step to step.
pub(super) struct Ranks<'e> {
    pub exchange: &'e mut dyn Exchange,
    /// Seconds that steps gave to the exchange, waiting for other ranks included.
    pub seconds: f64,
    /// Whether this rank's caller wants to stop. The ranks stop together, once they have heard of it.
    wish: bool,
    stopping: bool,
    /// All states before the step, padding included; absent where the device's are newer.
    states: Option<Vec<f32>>,
    /// Whose inputs are on the device: an epoch, and one of its batches.
    uploaded: Option<(usize, usize)>,
}

impl<'e> Ranks<'e> {
    pub fn new(exchange: &'e mut dyn Exchange) -> Self {
        Ranks {
            exchange,
            seconds: 0.0,
            wish: false,
            stopping: false,
            states: None,
            uploaded: None,
        }
    }

    /// Whether this rank logs and writes.
    pub fn is_first(&self) -> bool {
        self.exchange.rank() == 0
    }

    /// Takes what the caller answered to an event.
    pub fn hear(&mut self, flow: std::ops::ControlFlow<()>) {
        self.wish |= flow.is_break();
        self.stopping |= self.wish && self.exchange.size() == 1;
    }

    /// Whether the training ends after what is under way, on all ranks.
    pub fn are_stopping(&self) -> bool {
        self.stopping
    }

    pub fn stop(&mut self) {
        self.stopping = true;
    }

    fn timed<T>(&mut self, call: impl FnOnce(&mut dyn Exchange) -> T) -> T {
        let start = Instant::now();
        let given = call(self.exchange);
        self.seconds += start.elapsed().as_secs_f64();
        given
    }

    /// Whether all ranks have the same; the first one that has another than rank 0.
    pub fn differing(&mut self, own: Vec<u8>) -> Result<Option<usize>, ExchangeError> {
        let all = self.exchange.gather(own)?;
        Ok(all.iter().position(|other| *other != all[0]))
    }
}

/// What a batch left on the device, on its way to the host.
struct Batch {
    loss: Reading,
    states: Numbers,
    gradients: Numbers,
}

impl Batch {
    async fn begin(device: &Device, executable: &Executable, weights: &Weights) -> Result<Batch, TrainError> {
        Ok(Batch {
            loss: executable.begin_read(device, "loss").await?,
            states: weights.begin_read_states(device).await?,
            gradients: weights.begin_read_gradients(device).await?,
        })
    }
}

/// What the batches of a step give together.
#[derive(Default)]
struct Sum {
    losses: Vec<f32>,
    /// In f64, in which the mean of equal numbers is that number.
    states: Vec<f64>,
    /// This rank's share.
    gradients: Vec<f32>,
    /// Of all ranks.
    count: usize,
}

impl Sum {
    /// Adds a batch of each rank, in their order.
    async fn add(&mut self, device: &Device, ranks: &mut Ranks<'_>, batch: Batch) -> Result<(), TrainError> {
        let loss = batch.loss.finish(device).await?.data[0];
        let states = batch.states.finish(device).await?;
        let gradients = batch.gradients.finish(device).await?;
        let size = ranks.exchange.size();
        self.count = gradients.len();
        let parts: Vec<Vec<u8>> = (0..size)
            .map(|rank| {
                let mut part = vec![loss, f32::from(u8::from(ranks.wish))];
                part.extend_from_slice(&states);
                part.extend_from_slice(&gradients[share(gradients.len(), rank, size)]);
                to_bytes(&part)
            })
            .collect();
        for part in ranks.timed(|exchange| exchange.exchange(parts))? {
            let part = from_bytes(&part);
            ranks.stopping |= part[1] != 0.0;
            let (states, gradients) = part[2..].split_at(states.len());
            if self.losses.is_empty() {
                self.states = states.iter().copied().map(f64::from).collect();
                self.gradients = gradients.to_vec();
            } else {
                let sums = self.states.iter_mut().zip(states);
                sums.for_each(|(sum, state)| *sum += f64::from(*state));
                let sums = self.gradients.iter_mut().zip(gradients);
                sums.for_each(|(sum, gradient)| *sum += gradient);
            }
            self.losses.push(part[0]);
        }
        Ok(())
    }

    /// The mean of the states, and of the gradients, of which each rank gives its share.
    fn means(&self, ranks: &mut Ranks<'_>) -> Result<(Vec<f32>, Vec<f32>), TrainError> {
        let batches = self.losses.len();
        let states = self.states.iter().map(|sum| (sum / batches as f64) as f32);
        let own: Vec<f32> = self.gradients.iter().map(|sum| sum / batches as f32).collect();
        let mut gradients = Vec::with_capacity(self.count);
        for part in ranks.timed(|exchange| exchange.gather(to_bytes(&own)))? {
            gradients.extend(from_bytes(&part));
        }
        Ok((states.collect(), gradients))
    }
}

impl Steps<'_> {
    /// A step over all its batches, of which each rank computes every so manyeth: their losses, in order. The weights change
    /// by the mean of their gradients, and the states become the mean of what each batch makes of those before the step; but
    /// not where a loss is not finite, and not without `update`.
    pub(super) async fn accumulate(
        &self,
        executable: &mut Executable,
        weights: &Weights,
        ranks: &mut Ranks<'_>,
        (epoch, step): (usize, usize),
        update: bool,
    ) -> Result<Vec<f32>, TrainError> {
        let device = self.device;
        let (rank, size) = (ranks.exchange.rank(), ranks.exchange.size());
        let before = match ranks.states.take() {
            Some(states) => states,
            None => weights.begin_read_states(device).await?.finish(device).await?,
        };
        let batches = self.batches(step);
        let mut own = (batches.start + rank..batches.end).step_by(size).peekable();
        let mut sum = Sum::default();
        let mut in_flight: Option<Batch> = None;
        while let Some(batch) = own.next() {
            if ranks.uploaded != Some((epoch, batch)) {
                self.upload(executable, (epoch, batch)).await?;
            }
            executable.submit_gradients(device, &self.batch_scalars((epoch, batch)))?;
            let computed = Batch::begin(device, executable, weights).await?;
            // Every batch starts from the statistics before the step.
            weights.write_states(device, &before);
            // The device computes, while what comes next is made ready and the batch before is added.
            let next = own.peek().copied();
            let next = next.or((step + 1 < self.steps()).then_some(batches.end + rank));
            if let Some(next) = next {
                self.upload(executable, (epoch, next)).await?;
            }
            ranks.uploaded = next.map(|next| (epoch, next));
            if let Some(before) = in_flight.replace(computed) {
                sum.add(device, ranks, before).await?;
            }
        }
        if let Some(last) = in_flight {
            sum.add(device, ranks, last).await?;
        }
        ranks.states = Some(before);
        if update && sum.losses.iter().all(|loss| loss.is_finite()) {
            let (states, gradients) = sum.means(ranks)?;
            weights.write_gradients(device, &gradients)?;
            weights.write_states(device, &states);
            executable.submit_update(device, &self.scalars((epoch, step)))?;
            ranks.states = Some(states);
        }
        Ok(sum.losses)
    }
}

/// The loss of a step: the mean over its batches.
pub(super) fn mean(losses: &[f32]) -> f32 {
    let sum: f64 = losses.iter().copied().map(f64::from).sum();
    (sum / losses.len() as f64) as f32
}
