//! Deterministic scatters: sums into elements chosen by data, in 64-bit fixed point over two integer atomics
//! (`shaders/common/fixed_point.wgsl`). Integers add up to the same number in any order, and the scale follows the
//! largest upstream magnitude, so at least 2⁻³⁹ of it is resolved for a million summands.

use super::*;

params! {
    /// The uniform of `fixed_point.wgsl`.
    struct Params {
        count: u32,
        threads: u32,
        headroom: u32,
    }
}

/// The temporaries of one scatter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scatter {
    /// Two words for each element of the output.
    pub words: BufferRef,
    /// The bits of the largest upstream magnitude.
    pub largest: BufferRef,
    /// log₂ of the most summands that an element can get.
    pub headroom: usize,
    elements: usize,
}

const SHADER: Shader = shader!("fixed_point", "common/fixed_point"; Params);

impl Scatter {
    /// For sums into every device element of an output of `elements` numbers, at most `summands` to each.
    pub(crate) fn new(io: &mut Io, elements: usize, summands: usize) -> Self {
        Scatter {
            words: io.scratch(elements as u64 * 8),
            largest: io.scratch(4),
            headroom: summands.next_power_of_two().ilog2() as usize,
            elements,
        }
    }

    fn launch(&self, entry: &'static str, count: usize, threads: usize, bindings: Vec<Binding>) -> Dispatch {
        Dispatch {
            params: Params {
                count: int(count),
                threads: int(threads),
                headroom: int(self.headroom),
            }
            .into(),
            bindings,
            workgroups: linear_groups(threads, 64),
            iterations: count.div_ceil(threads) as u64,
            ..Dispatch::new(SHADER, entry)
        }
    }

    /// Clears the sums and finds the largest of the `count` upstream numbers.
    pub(crate) fn before(&self, upstream: BufferRef, count: usize) -> [Dispatch; 2] {
        let cleared = vec![write(self.words), write(self.largest)];
        [
            self.launch("clear", self.elements, self.elements, cleared),
            self.launch(
                "maximum",
                count,
                reduction_threads(count, 4),
                vec![read(upstream), write(self.largest)],
            ),
        ]
    }

    /// Writes the sums as floats.
    pub(crate) fn after(&self, output: BufferRef) -> Dispatch {
        let bindings = vec![read(self.words), read(self.largest), write(output)];
        self.launch("finish", self.elements, self.elements, bindings)
    }
}
