//! The part of Python's pickle language that PyTorch's checkpoints are written in, and nothing that runs code.
//!
//! A pickle is a program for a stack machine. This machine has the instructions of `torch.save` (protocols 2 to 5) and
//! knows the few functions in [`Callable`], which build plain data here; any other name is refused where it is
//! mentioned, before anything could be done with it. Containers are numbers into tables, so nothing recurses and a
//! container may hold itself; every instruction makes at most one value of fixed size, so memory is bounded by
//! [`MOST_BYTES`].
//!
//! Own code, because no crate refuses enough. Of the 73 hostile files in `tests/reference/pth/hostile`, all of them refused
//! here, pytorch-reader 0.23.0-pre.1 opens 26: 12 whose pickles would call something come out as state dicts without
//! tensors, and a compressed entry of 17 kB becomes 16 MiB. One more, a tensor that repeats two numbers 2³⁰ times, ends
//! the process, which can't have 4 GiB. It would bring nine crates, `tar` and `zip` among them.

use std::collections::HashMap;
use std::rc::Rc;

/// Longest pickle, in bytes. Those of the published files have 13 kB; 100 bytes describe a tensor.
pub(super) const MOST_BYTES: usize = 4 << 20;

/// Most axes of a tensor; a 3D convolution's weights have five.
const MOST_AXES: usize = 8;

/// Most arguments of a call; `_rebuild_tensor_v2` has seven.
const MOST_ARGUMENTS: usize = 8;

/// A value on the machine's stack.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    /// As wide as the magic number of the legacy format (77 bits) needs.
    Int(i128),
    Float(f64),
    Text(Rc<str>),
    /// Position in [`Pickle::tuples`].
    Tuple(usize),
    /// Position in [`Pickle::lists`].
    List(usize),
    /// Position in [`Pickle::dicts`].
    Dict(usize),
    Callable(Callable),
    /// Position in [`Pickle::storages`].
    Storage(usize),
    /// Position in [`Pickle::views`].
    Tensor(usize),
    /// Something that nobody here looks at: a device, a number or a type of numpy's.
    Unread,
}

impl Value {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an int",
            Value::Float(_) => "a float",
            Value::Text(_) => "a string",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Callable(_) => "a function",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
            Value::Unread => "a value of another library",
        }
    }
}

/// Everything that a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Callable {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildParameter,
    /// Names of values that stand beside the tensors in nnU-Net's checkpoints.
    Unread,
    /// `torch.FloatStorage` and its like: names an element type, is never called.
    StorageType(Element),
}

impl Callable {
    fn find(module: &str, name: &str) -> Option<Callable> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Callable::OrderedDict,
            ("torch", "Size") => Callable::Size,
            ("torch._utils", "_rebuild_tensor_v2") => Callable::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Callable::RebuildParameter,
            ("torch", "device")
            | ("numpy", "dtype")
            | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar")
            | ("_codecs", "encode") => Callable::Unread,
            ("numpy.dtypes", name) if name.ends_with("DType") => Callable::Unread,
            ("torch" | "torch.cuda", storage) => Callable::StorageType(Element::of_storage(storage)?),
            _ => return None,
        })
    }
}

/// Type of a storage's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Element {
    fn of_storage(name: &str) -> Option<Element> {
        Some(match name {
            "DoubleStorage" => Element::F64,
            "FloatStorage" => Element::F32,
            "HalfStorage" => Element::F16,
            "BFloat16Storage" => Element::BF16,
            "LongStorage" => Element::I64,
            "IntStorage" => Element::I32,
            "ShortStorage" => Element::I16,
            "CharStorage" => Element::I8,
            "ByteStorage" => Element::U8,
            "BoolStorage" => Element::Bool,
            _ => return None,
        })
    }

    /// Bytes of one element.
    pub(super) fn size(self) -> usize {
        match self {
            Element::F64 | Element::I64 => 8,
            Element::F32 | Element::I32 => 4,
            Element::F16 | Element::BF16 | Element::I16 => 2,
            Element::I8 | Element::U8 | Element::Bool => 1,
        }
    }

    /// PyTorch's name of the type.
    pub(super) fn name(self) -> &'static str {
        match self {
            Element::F64 => "float64",
            Element::F32 => "float32",
            Element::F16 => "float16",
            Element::BF16 => "bfloat16",
            Element::I64 => "int64",
            Element::I32 => "int32",
            Element::I16 => "int16",
            Element::I8 => "int8",
            Element::U8 => "uint8",
            Element::Bool => "bool",
        }
    }
}

/// A run of elements elsewhere in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    /// Its name: the entry `data/KEY` of a zip checkpoint, one of the list of keys in a legacy one.
    pub key: Rc<str>,
    /// Type of its elements.
    pub element: Element,
    /// Number of its elements.
    pub count: usize,
}

/// A tensor: a view of a storage, in elements, checked to lie within it.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Position in [`Pickle::storages`].
    pub storage: usize,
    /// Of the first element.
    pub offset: usize,
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// Step along each axis; 0 along an axis of one element.
    pub strides: Vec<usize>,
}

impl View {
    /// Number of elements; at most the storage's.
    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What a pickle describes.
#[derive(Debug)]
pub(super) struct Pickle {
    pub root: Value,
    pub tuples: Vec<Vec<Value>>,
    pub lists: Vec<Vec<Value>>,
    pub dicts: Vec<Vec<(Value, Value)>>,
    pub storages: Vec<Storage>,
    pub views: Vec<View>,
}

/// Reads the pickle at the start of `bytes`; returns it with its length.
///
/// # Errors
/// In words for the user, with the position, when the pickle is damaged, too long, or names or does anything that no
/// state dict needs.
pub(super) fn load(bytes: &[u8]) -> Result<(Pickle, usize), String> {
    let mut machine = Machine {
        bytes: &bytes[..bytes.len().min(MOST_BYTES)],
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        keys: HashMap::new(),
        pickle: Pickle {
            root: Value::None,
            tuples: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            views: Vec::new(),
        },
    };
    loop {
        let start = machine.at;
        match machine.step() {
            Ok(true) => return Ok((machine.pickle, machine.at)),
            Ok(false) => {}
            Err(reason) if reason == TRUNCATED && bytes.len() > MOST_BYTES => {
                return Err(format!("its pickle is longer than {} MiB", MOST_BYTES >> 20));
            }
            Err(reason) => return Err(format!("at byte {start} of its pickle: {reason}")),
        }
    }
}

const TRUNCATED: &str = "it ends too early; the file is truncated or damaged";

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at MARK instructions.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// Storages by key.
    keys: HashMap<Rc<str>, usize>,
    pickle: Pickle,
}

impl<'a> Machine<'a> {
    /// Runs one instruction; true after the last.
    fn step(&mut self) -> Result<bool, String> {
        let instruction = self.byte()?;
        match instruction {
            // PROTO
            0x80 => match self.byte()? {
                2..=5 => {}
                other => return Err(format!("pickle protocol {other} is not one of 2 to 5")),
            },
            // FRAME: a hint for buffering
            0x95 => drop(self.take(8)?),
            // STOP
            b'.' => {
                self.pickle.root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err("values are left over at its end".into());
                }
                return Ok(true);
            }
            // MARK
            b'(' => self.marks.push(self.stack.len()),
            // NONE, NEWTRUE, NEWFALSE, BINFLOAT
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool(instruction == 0x88)),
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.stack.push(Value::Float(value));
            }
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.byte()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => {
                let length = self.byte()? as usize;
                let value = little_endian(self.take(length)?)?;
                self.stack.push(Value::Int(value));
            }
            // SHORT_BINUNICODE, SHORT_BINSTRING
            0x8c | b'U' => {
                let length = self.byte()? as usize;
                self.text(length)?;
            }
            // BINUNICODE, BINSTRING
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.array()?) as usize;
                self.text(length)?;
            }
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.tuple(Vec::new()),
            0x85..=0x87 => {
                let items = self.pop_many((instruction - 0x84) as usize)?;
                self.tuple(items);
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.tuple(items);
            }
            // EMPTY_LIST, APPEND, APPENDS
            b']' => {
                self.pickle.lists.push(Vec::new());
                self.stack.push(Value::List(self.pickle.lists.len() - 1));
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            // EMPTY_DICT, SETITEM, SETITEMS
            b'}' => self.dict(Vec::new()),
            b's' => {
                let items = self.pop_many(2)?;
                self.set(items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(items)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let key = self.byte()?.into();
                self.remember(key)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            // BINGET, LONG_BINGET
            b'h' => {
                let key = self.byte()?.into();
                self.recall(key)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let names = self.pop_many(2)?;
                let [Value::Text(module), Value::Text(name)] = &names[..] else {
                    return Err("it names a function by something else than strings".into());
                };
                self.global(module, name)?;
            }
            // REDUCE, BUILD, BINPERSID
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            b'Q' => self.storage()?,
            other => return Err(self.refuse(other)),
        }
        Ok(false)
    }

    /// Why an instruction that no state dict needs is not carried out.
    fn refuse(&mut self, instruction: u8) -> String {
        match instruction {
            // INST
            b'i' => match (self.line(), self.line()) {
                (Ok(module), Ok(name)) => would_call(module, name),
                _ => TRUNCATED.into(),
            },
            b'o' => would_run("OBJ"),
            0x81 => would_run("NEWOBJ"),
            0x92 => would_run("NEWOBJ_EX"),
            0x82..=0x84 => would_run("EXT"),
            b'P' => would_run("PERSID"),
            other => format!("instruction 0x{other:02x} is none of those that `torch.save` writes"),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let callable = Callable::find(module, name).ok_or_else(|| would_call(module, name))?;
        self.stack.push(Value::Callable(callable));
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), String> {
        let both = self.pop_many(2)?;
        let (Value::Callable(callable), Value::Tuple(arguments)) = (&both[0], &both[1]) else {
            return Err(format!("it calls {} with {}", both[0].kind(), both[1].kind()));
        };
        let arguments = self.short_tuple(*arguments)?;
        match (callable, &arguments[..]) {
            (Callable::OrderedDict, []) => self.dict(Vec::new()),
            (Callable::OrderedDict, [Value::List(pairs)]) => {
                let pairs = self.pairs(*pairs)?;
                self.dict(pairs);
            }
            (Callable::Size, [tuple @ Value::Tuple(_)])
            | (Callable::RebuildParameter, [tuple @ Value::Tensor(_), _, _]) => {
                self.stack.push(tuple.clone())
            }
            // requires_grad, backward hooks and metadata say nothing about the elements
            (Callable::RebuildTensor, [Value::Storage(storage), offset, shape, strides, ..]) => {
                let view = self.view(*storage, offset, shape, strides)?;
                self.pickle.views.push(view);
                self.stack.push(Value::Tensor(self.pickle.views.len() - 1));
            }
            (Callable::Unread, _) => self.stack.push(Value::Unread),
            (callable, arguments) => {
                let kinds: Vec<_> = arguments.iter().map(Value::kind).collect();
                return Err(format!("it calls {callable:?} with ({})", kinds.join(", ")));
            }
        }
        Ok(())
    }

    /// The pairs of a list of pairs: how Python 2 wrote an OrderedDict. The list is emptied, since copies of one list
    /// could fill any memory.
    fn pairs(&mut self, list: usize) -> Result<Vec<(Value, Value)>, String> {
        let list = std::mem::take(&mut self.pickle.lists[list]);
        let pair = |value: &Value| {
            let items = match value {
                Value::List(i) => &self.pickle.lists[*i],
                Value::Tuple(i) => &self.pickle.tuples[*i],
                other => return Err(format!("an OrderedDict is made of {}", other.kind())),
            };
            match &items[..] {
                [key, value] => Ok((key.clone(), value.clone())),
                _ => Err("an OrderedDict is made of items that are no pairs".into()),
            }
        };
        list.iter().map(pair).collect()
    }

    /// A copy of a tuple of arguments.
    fn short_tuple(&self, tuple: usize) -> Result<Vec<Value>, String> {
        match &self.pickle.tuples[tuple] {
            items if items.len() <= MOST_ARGUMENTS => Ok(items.clone()),
            items => Err(format!("it calls a function with {} arguments", items.len())),
        }
    }

    /// Attributes of a dict (a state dict's `_metadata`) are dropped; nothing else has any here.
    fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_) | Value::Unread) => Ok(()),
            Some(other) => Err(format!("it would set the state of {}; refused", other.kind())),
            None => Err("it takes a value from an empty stack".into()),
        }
    }

    /// Persistent ids are ('storage', type, key, location, elements), in legacy files with a sixth item.
    fn storage(&mut self) -> Result<(), String> {
        let id = match self.pop()? {
            Value::Tuple(id) => self.short_tuple(id)?,
            other => return Err(format!("a persistent id is {}, not a tuple", other.kind())),
        };
        let (kind, element, key, count) = match &id[..] {
            [
                Value::Text(kind),
                Value::Callable(Callable::StorageType(element)),
                key,
                _,
                Value::Int(count),
            ]
            | [
                Value::Text(kind),
                Value::Callable(Callable::StorageType(element)),
                key,
                _,
                Value::Int(count),
                Value::None,
            ] => (kind, *element, key, *count),
            [.., Value::Tuple(_)] if id.len() == 6 => {
                return Err(
                    "it has views of storages, which PyTorch ceased to write at version 0.4; \
                    load and save it again with a newer PyTorch"
                        .into(),
                );
            }
            _ => return Err("a persistent id does not describe a storage".into()),
        };
        if &**kind != "storage" {
            return Err(format!("a persistent id names a `{}`", kind.escape_debug()));
        }
        let key: Rc<str> = match key {
            Value::Text(key) => key.clone(),
            Value::Int(key) => key.to_string().into(),
            other => return Err(format!("a storage's key is {}", other.kind())),
        };
        let count = usize::try_from(count)
            .ok()
            .filter(|n| {
                n.checked_mul(element.size())
                    .is_some_and(|bytes| bytes <= isize::MAX as usize)
            })
            .ok_or_else(|| format!("a storage of {count} elements"))?;
        let storage = Storage { key, element, count };
        let index = match self.keys.get(&storage.key) {
            Some(&index) if self.pickle.storages[index] == storage => index,
            Some(_) => {
                return Err(format!(
                    "storage {} is described twice, differently",
                    storage.key.escape_debug()
                ));
            }
            None => {
                self.keys.insert(storage.key.clone(), self.pickle.storages.len());
                self.pickle.storages.push(storage);
                self.pickle.storages.len() - 1
            }
        };
        self.stack.push(Value::Storage(index));
        Ok(())
    }

    fn view(&self, storage: usize, offset: &Value, shape: &Value, strides: &Value) -> Result<View, String> {
        let (shape, strides) = (self.sizes("a shape", shape)?, self.sizes("strides", strides)?);
        let offset = size("an offset", offset)?;
        if shape.len() != strides.len() {
            return Err(format!("a tensor of shape {shape:?} has strides {strides:?}"));
        }
        let all = self.pickle.storages[storage].count;
        let outside = || {
            format!(
                "a tensor of shape {shape:?}, strides {strides:?} and offset {offset} reaches beyond its \
                storage of {all} elements"
            )
        };
        let mut count = 1usize;
        let mut last = offset;
        for (&n, &stride) in shape.iter().zip(&strides) {
            count = count.checked_mul(n).ok_or_else(outside)?;
            last = stride
                .checked_mul(n.saturating_sub(1))
                .and_then(|reach| last.checked_add(reach))
                .ok_or_else(outside)?;
        }
        if count > 0 && last >= all {
            return Err(outside());
        }
        if count > all {
            return Err(format!(
                "a tensor of shape {shape:?} repeats the {all} elements of its storage (strides {strides:?}); \
                save a contiguous copy"
            ));
        }
        // The step along an axis of one element may be any number, and is never taken.
        let strides = strides
            .iter()
            .zip(&shape)
            .map(|(&s, &n)| if n > 1 { s } else { 0 });
        Ok(View {
            storage,
            offset,
            strides: strides.collect(),
            shape,
        })
    }

    fn sizes(&self, what: &str, value: &Value) -> Result<Vec<usize>, String> {
        let Value::Tuple(tuple) = value else {
            return Err(format!("a tensor has {what} of {}", value.kind()));
        };
        let items = &self.pickle.tuples[*tuple];
        if items.len() > MOST_AXES {
            return Err(format!(
                "a tensor has {} axes; at most {MOST_AXES} are read",
                items.len()
            ));
        }
        items.iter().map(|item| size(what, item)).collect()
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        let text =
            std::str::from_utf8(self.take(length)?).map_err(|_| "a string is not UTF-8".to_string())?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn tuple(&mut self, items: Vec<Value>) {
        self.pickle.tuples.push(items);
        self.stack.push(Value::Tuple(self.pickle.tuples.len() - 1));
    }

    fn dict(&mut self, pairs: Vec<(Value, Value)>) {
        self.pickle.dicts.push(pairs);
        self.stack.push(Value::Dict(self.pickle.dicts.len() - 1));
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), String> {
        match self.stack.last() {
            Some(Value::List(list)) => self.pickle.lists[*list].extend(items),
            _ => return Err("it appends to what is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Value>) -> Result<(), String> {
        let Some(Value::Dict(dict)) = self.stack.last() else {
            return Err("it sets items of what is no dict".into());
        };
        if !items.len().is_multiple_of(2) {
            return Err("a dict has a key without a value".into());
        }
        let pairs = items.chunks_exact(2).map(|kv| (kv[0].clone(), kv[1].clone()));
        self.pickle.dicts[*dict].extend(pairs);
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Result<(), String> {
        let value = self
            .stack
            .last()
            .ok_or("it remembers a value of an empty stack")?;
        self.memo.insert(key, value.clone());
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let value = self
            .memo
            .get(&key)
            .ok_or("it recalls a value that it never remembered")?;
        self.stack.push(value.clone());
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        Ok(self.pop_many(1)?.remove(0))
    }

    /// The last `n` values above the last mark.
    fn pop_many(&mut self, n: usize) -> Result<Vec<Value>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n).filter(|start| *start >= floor) {
            Some(start) => Ok(self.stack.split_off(start)),
            None => Err("it takes a value from an empty stack".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("it closes a group that it never opened")?;
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        if n > rest.len() {
            return Err(TRUNCATED.into());
        }
        self.at += n;
        Ok(&rest[..n])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes as asked for"))
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|b| *b == b'\n').ok_or(TRUNCATED)?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| "a name is not UTF-8".into())
    }
}

fn size(what: &str, value: &Value) -> Result<usize, String> {
    match value {
        Value::Int(n) => usize::try_from(*n).map_err(|_| format!("a tensor has {what} of {n}")),
        other => Err(format!("a tensor has {what} of {}", other.kind())),
    }
}

/// A signed little-endian number of any length up to 16 bytes.
fn little_endian(bytes: &[u8]) -> Result<i128, String> {
    if bytes.len() > 16 {
        return Err(format!("a number of {} bytes", bytes.len()));
    }
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    Ok(i128::from_le_bytes(wide))
}

fn would_call(module: &str, name: &str) -> String {
    let short = |text: &str| -> String {
        text.chars()
            .take(100)
            .collect::<String>()
            .escape_debug()
            .collect()
    };
    format!(
        "it would call {}.{}; refused, nothing was executed. If you trust the file, load it in PyTorch and save \
        `model.state_dict()` alone",
        short(module),
        short(name)
    )
}

fn would_run(instruction: &str) -> String {
    format!("it would construct an object ({instruction}); refused, nothing was executed")
}
