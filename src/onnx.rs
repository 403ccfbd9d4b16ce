//! ONNX graphs as plain data: what operations write themselves with ([`crate::op::Op::onnx`]), and the file's messages.
//! <https://onnx.ai/onnx/operators> has the operators.

pub mod proto;

use std::collections::HashSet;

use crate::tensor::Spec;

/// Version of the operators: the first with GridSample of volumes.
pub const OPSET: i64 = 20;
/// Version of the file format, the one that came with [`OPSET`]; onnxruntime reads it from 1.17 on.
pub const IR_VERSION: i64 = 9;

/// The name of the tensor that a network reads.
pub const IMAGE: &str = "image";

/// An operation's surroundings while it is written.
#[derive(Debug)]
pub struct Call<'a> {
    /// The names of its inputs.
    pub inputs: &'a [String],
    /// Their shapes.
    pub specs: &'a [Spec],
    /// The shapes of its outputs.
    pub outputs: &'a [Spec],
}

impl Call<'_> {
    /// The names of its inputs.
    pub fn inputs(&self) -> Vec<&str> {
        self.inputs.iter().map(String::as_str).collect()
    }
}

/// An attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute<'a> {
    /// A number.
    Float(&'static str, f32),
    /// A whole number.
    Int(&'static str, i64),
    /// A word.
    Text(&'static str, &'a str),
    /// Whole numbers.
    Ints(&'static str, Vec<i64>),
}

impl Attribute<'_> {
    fn message(self) -> proto::Attribute {
        let empty = proto::Attribute::default();
        let (name, kind, message) = match self {
            Attribute::Float(name, f) => (name, 1, proto::Attribute { f: Some(f), ..empty }),
            Attribute::Int(name, i) => (name, 2, proto::Attribute { i: Some(i), ..empty }),
            Attribute::Text(name, s) => {
                let s = Some(s.into());
                (name, 3, proto::Attribute { s, ..empty })
            }
            Attribute::Ints(name, ints) => (name, 7, proto::Attribute { ints, ..empty }),
        };
        proto::Attribute {
            name: name.into(),
            r#type: kind,
            ..message
        }
    }
}

/// Sizes on D, H, W as attributes, or any other numbers of them.
pub fn ints(values: impl IntoIterator<Item = usize>) -> Vec<i64> {
    values.into_iter().map(|v| v as i64).collect()
}

/// Adds nodes to a graph.
#[derive(Debug, Default)]
pub struct Writer {
    /// In the order of their execution.
    pub nodes: Vec<proto::Node>,
    /// Small tensors that nodes read.
    pub constants: Vec<proto::Tensor>,
    /// Begins the names of the nodes and values that follow.
    pub scope: String,
    /// Where the image may have any size: the one that this graph was built for.
    probe: Option<[usize; 3]>,
    names: HashSet<String>,
}

impl Writer {
    /// For an image whose size is fixed, or any, of which `probe` is one.
    pub fn new(probe: Option<[usize; 3]>) -> Writer {
        Writer {
            probe,
            ..Writer::default()
        }
    }

    /// Adds a node of one output, whose name it returns.
    pub fn node<'a>(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: impl IntoIterator<Item = Attribute<'a>>,
    ) -> String {
        let name = self.unique(&format!("{}/{operator}", self.scope));
        self.nodes.push(proto::Node {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: operator.into(),
            attribute: attributes.into_iter().map(Attribute::message).collect(),
        });
        name
    }

    /// Adds whole numbers, a vector.
    pub fn int64(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(&[values.len()], proto::INT64, bytes)
    }

    /// Adds a single whole number.
    pub fn integer(&mut self, value: i64) -> String {
        self.constant(&[], proto::INT64, value.to_le_bytes().to_vec())
    }

    /// Adds numbers of a shape; `[]` is a single one.
    pub fn float(&mut self, shape: &[usize], values: &[f32]) -> String {
        self.constant(shape, proto::FLOAT, little_endian(values))
    }

    fn constant(&mut self, shape: &[usize], data_type: i32, bytes: Vec<u8>) -> String {
        let dims = ints(shape.iter().copied());
        // Sizes occur again and again.
        let same = |t: &&proto::Tensor| {
            t.dims == dims && t.data_type == data_type && t.raw_data.as_ref() == Some(&bytes)
        };
        if let Some(known) = self.constants.iter().find(same) {
            return known.name.clone();
        }
        let name = self.unique(&format!("constant/{}", self.constants.len()));
        self.constants.push(proto::Tensor {
            dims,
            data_type,
            name: name.clone(),
            raw_data: Some(bytes),
        });
        name
    }

    /// Maps along their channels; one stays as it is.
    pub fn concat(&mut self, maps: &[String]) -> String {
        match maps {
            [map] => map.clone(),
            _ => {
                let maps: Vec<&str> = maps.iter().map(String::as_str).collect();
                self.node("Concat", &maps, [Attribute::Int("axis", 1)])
            }
        }
    }

    /// A leaky ReLU of that slope behind `x`; none where there is none.
    pub fn leaky(&mut self, x: String, slope: Option<f32>) -> String {
        match slope {
            None => x,
            Some(0.0) => self.node("Relu", &[&x], []),
            Some(slope) => self.node("LeakyRelu", &[&x], [Attribute::Float("alpha", slope)]),
        }
    }

    /// Voxels along D, H, W, int64 `[3]`: numbers, or where the image may have any size, ⌈n / 2ᵏ⌉ of its size.
    ///
    /// # Errors
    /// A size that does not follow from the image's so.
    pub fn size(&mut self, size: [usize; 3]) -> Result<String, String> {
        let Some(probe) = self.probe else {
            return Ok(self.int64(&ints(size)));
        };
        let halved = |k: &u32| probe.map(|n| n.div_ceil(1 << k)) == size;
        let Some(k) = (0..8).find(halved) else {
            return Err(format!("its {size:?} voxels don't follow from the image's size"));
        };
        let shape = self.node("Shape", &[IMAGE], [Attribute::Int("start", 2)]);
        if k == 0 {
            return Ok(shape);
        }
        let (more, divisor) = (self.int64(&[(1 << k) - 1]), self.int64(&[1 << k]));
        let sum = self.node("Add", &[&shape, &more], []);
        Ok(self.node("Div", &[&sum, &divisor], []))
    }

    /// One number of an int64 vector, itself a vector.
    pub fn element(&mut self, of: &str, index: usize) -> String {
        let index = self.int64(&[index as i64]);
        self.node("Gather", &[of, &index], [Attribute::Int("axis", 0)])
    }

    /// `x` with the shape whose numbers these int64 vectors have.
    pub fn reshape(&mut self, x: &str, shape: &[&str]) -> String {
        let shape = match shape {
            [one] => (*one).to_owned(),
            _ => self.node("Concat", shape, [Attribute::Int("axis", 0)]),
        };
        self.node("Reshape", &[x, &shape], [])
    }

    fn unique(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut number = 1;
        while !self.names.insert(name.clone()) {
            number += 1;
            name = format!("{wanted}.{number}");
        }
        name
    }
}

/// The bytes of numbers in a file.
pub fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The description of an input or output of that type and shape, axes by number or name.
pub fn described(name: &str, elements: i32, axes: Vec<proto::Extent>, about: &str) -> proto::ValueInfo {
    let dim = |extent| proto::Dimension { value: Some(extent) };
    let shape = proto::Shape {
        dim: axes.into_iter().map(dim).collect(),
    };
    proto::ValueInfo {
        name: name.into(),
        r#type: Some(proto::Type {
            tensor_type: Some(proto::TensorType {
                elem_type: elements,
                shape: Some(shape),
            }),
        }),
        doc_string: about.into(),
    }
}
