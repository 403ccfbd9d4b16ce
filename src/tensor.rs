//! Shapes, device layouts and host tensors.

use std::fmt;

/// Bytes at whose multiples a binding may start in a buffer: WebGPU's `minStorageBufferOffsetAlignment`.
pub const ALIGNMENT: u64 = 256;

/// How a tensor's elements lie in device memory. Every element is an f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Dense and row-major, any rank: images `[N, C, D, H, W]`, labels `[N, 1, D, H, W]`, weights, vectors.
    Flat,
    /// A feature map of logical shape `[N, C, D, H, W]`, stored as `[N, D, ceil(C/4), H, W, 4]`: four channels
    /// to a vec4, depth outside the channels, so that any range of depth with all its channels is one
    /// contiguous binding and an oversize map splits along depth. Lanes beyond `C` hold zeros.
    Map,
}

/// How many elements a value has: few enough for kernels, whose coordinates have 31 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Elements(u32);

impl Elements {
    /// The most.
    pub const MOST: usize = i32::MAX as usize;

    /// The product of a shape, unless it is more.
    pub fn of(shape: &[usize]) -> Option<Elements> {
        // 0 times anything is 0, however much the others make.
        let product = match shape.contains(&0) {
            true => Some(0),
            false => shape
                .iter()
                .try_fold(1usize, |product, side| product.checked_mul(*side)),
        };
        let count = product.filter(|count| *count <= Elements::MOST)?;
        u32::try_from(count).ok().map(Elements)
    }

    /// The number.
    pub fn get(self) -> usize {
        self.0 as usize
    }
}

/// What the graph knows of a value before any data exists: its logical shape and its layout.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Logical shape; `[N, C, D, H, W]` for maps and images, whatever the layout.
    pub shape: Vec<usize>,
    /// The order of the elements in device memory.
    pub layout: Layout,
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{:?}",
            if self.layout == Layout::Map { "map" } else { "" },
            self.shape
        )
    }
}

impl Spec {
    /// A dense row-major value of any rank.
    pub fn flat(shape: &[usize]) -> Self {
        Spec {
            shape: shape.to_vec(),
            layout: Layout::Flat,
        }
    }

    /// A feature map `[N, C, D, H, W]` with its channels in fours.
    pub fn map(shape: [usize; 5]) -> Self {
        Spec {
            shape: shape.to_vec(),
            layout: Layout::Map,
        }
    }

    /// Logical number of elements, without padding lanes.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// `[N, C, D, H, W]` of a five-dimensional value, `None` for another rank.
    pub fn ncdhw(&self) -> Option<[usize; 5]> {
        self.shape.as_slice().try_into().ok()
    }

    /// Planes (n, z) of a five-dimensional value, N·D; 1 of another rank.
    pub fn planes(&self) -> usize {
        self.ncdhw().map_or(1, |s| s[0] * s[2])
    }

    /// Bytes of a plane (n, z) with all its channels, of a five-dimensional value whose planes are contiguous: a map, or a
    /// flat volume of one channel.
    pub fn plane_bytes(&self) -> Option<u64> {
        let [_, c, _, h, w] = self.ncdhw()?;
        match self.layout {
            Layout::Map => Some((self.blocks() * h * w * 16) as u64),
            Layout::Flat => (c == 1).then_some((h * w * 4) as u64),
        }
    }

    /// Channel blocks of four, `ceil(C / 4)`, of a five-dimensional value.
    pub fn blocks(&self) -> usize {
        self.shape[1].div_ceil(4)
    }

    /// Elements in device memory, padding lanes included, unless they are too many for kernels.
    pub fn elements(&self) -> Option<Elements> {
        match self.layout {
            Layout::Flat => Elements::of(&self.shape),
            Layout::Map => {
                let [n, c, d, h, w] = self.ncdhw()?;
                Elements::of(&[n, c.checked_next_multiple_of(4)?, d, h, w])
            }
        }
    }

    /// Number of f32 the value takes in device memory: with padding lanes, and rounded up to a whole vec4.
    pub fn device_len(&self) -> usize {
        match self.layout {
            Layout::Flat => self.count().next_multiple_of(4).max(4),
            Layout::Map => {
                let s = &self.shape;
                s[0] * s[2] * self.blocks() * s[3] * s[4] * 4
            }
        }
    }

    /// Bytes in device memory.
    pub fn bytes(&self) -> u64 {
        self.device_len() as u64 * 4
    }
}

/// A host tensor: dense, row-major, f32.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Tensor {
    /// Logical shape.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` elements, the last axis fastest.
    pub data: Vec<f32>,
}

impl Tensor {
    /// Wraps `data`; panics if its length disagrees with `shape` (a programming error, not an input error).
    pub fn new(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            data.len(),
            "tensor of shape {shape:?}"
        );
        Tensor {
            shape: shape.to_vec(),
            data,
        }
    }

    /// All zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::full(shape, 0.0)
    }

    /// Every element `value`.
    pub fn full(shape: &[usize], value: f32) -> Self {
        Tensor {
            shape: shape.to_vec(),
            data: vec![value; shape.iter().product()],
        }
    }

    /// A tensor whose element at flat index `i` is `f(i)`.
    pub fn from_fn(shape: &[usize], f: impl FnMut(usize) -> f32) -> Self {
        Tensor {
            shape: shape.to_vec(),
            data: (0..shape.iter().product()).map(f).collect(),
        }
    }

    /// `[N, C, D, H, W]`; panics on another rank.
    pub fn ncdhw(&self) -> [usize; 5] {
        self.shape
            .as_slice()
            .try_into()
            .expect("a five-dimensional tensor")
    }

    /// The element at `[n, c, z, y, x]` of a five-dimensional tensor.
    #[inline]
    pub fn at(&self, n: usize, c: usize, z: usize, y: usize, x: usize) -> f32 {
        self.data[self.index(n, c, z, y, x)]
    }

    /// Flat index of `[n, c, z, y, x]`.
    #[inline]
    pub fn index(&self, n: usize, c: usize, z: usize, y: usize, x: usize) -> usize {
        let s = &self.shape;
        (((n * s[1] + c) * s[2] + z) * s[3] + y) * s[4] + x
    }

    /// The elements in the order that `layout` has on the device, padding lanes zero.
    pub fn to_device(&self, layout: Layout) -> Vec<f32> {
        let spec = Spec {
            shape: self.shape.clone(),
            layout,
        };
        let mut out = vec![0.0; spec.device_len()];
        match layout {
            Layout::Flat => out[..self.data.len()].copy_from_slice(&self.data),
            Layout::Map => map_indices(&spec, |dense, device| out[device] = self.data[dense]),
        }
        out
    }

    /// The inverse of [`Tensor::to_device`].
    pub fn from_device(spec: &Spec, device: &[f32]) -> Self {
        let mut out = Tensor::zeros(&spec.shape);
        match spec.layout {
            Layout::Flat => out.data.copy_from_slice(&device[..spec.count()]),
            Layout::Map => map_indices(spec, |dense, at| out.data[dense] = device[at]),
        }
        out
    }
}

/// Calls `visit(dense index, device index)` for every logical element of a map.
fn map_indices(spec: &Spec, mut visit: impl FnMut(usize, usize)) {
    let [n, c, d, h, w] = spec.ncdhw().expect("maps have five axes");
    let blocks = spec.blocks();
    let mut dense = 0;
    for n in 0..n {
        for c in 0..c {
            for z in 0..d {
                for y in 0..h {
                    for x in 0..w {
                        let device = ((((n * d + z) * blocks + c / 4) * h + y) * w + x) * 4 + c % 4;
                        visit(dense, device);
                        dense += 1;
                    }
                }
            }
        }
    }
}

/// Numbers without a pattern that a cache or a branch predictor could use.
pub(crate) fn scrambled(i: usize) -> u32 {
    let h = (i as u32).wrapping_mul(0x9E37_79B1);
    let h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
    h ^ (h >> 13)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_counted_without_overflow() {
        let count = |shape: &[usize]| Elements::of(shape).map(Elements::get);
        assert_eq!(count(&[]), Some(1));
        assert_eq!(count(&[2, 3, 4]), Some(24));
        assert_eq!(count(&[0, usize::MAX, usize::MAX]), Some(0));
        assert_eq!(count(&[1, 2147483647]), Some(2147483647));
        for many in [
            &[2147483648][..],
            &[65536, 32768],
            &[1 << 22; 3],
            &[usize::MAX; 2],
            &[1 << 16; 4],
        ] {
            assert_eq!(count(many), None, "{many:?}");
        }
        let map = |c| Spec::map([1, c, 1, 1, 536870911]).elements().is_some();
        assert!(map(1) && !map(5));
        assert!(Spec::map([1, usize::MAX, 1, 1, 1]).elements().is_none());
    }

    #[test]
    fn maps_keep_their_elements_and_zero_their_padding() {
        let tensor = Tensor::from_fn(&[2, 5, 3, 4, 2], |i| i as f32 + 1.0);
        let device = tensor.to_device(Layout::Map);
        let spec = Spec::map([2, 5, 3, 4, 2]);
        assert_eq!(device.len(), 2 * 3 * 2 * 4 * 2 * 4);
        assert_eq!(device.iter().filter(|v| **v == 0.0).count(), 3 * 2 * 3 * 4 * 2);
        // [n=1, c=4, z=2, y=3, x=1] is lane 0 of block 1.
        assert_eq!(
            device[(((3 + 2) * 2 + 1) * 4 + 3) * 8 + 4],
            tensor.at(1, 4, 2, 3, 1)
        );
        assert_eq!(Tensor::from_device(&spec, &device), tensor);
    }
}
