//! Modules that read storage buffers through textures, changed as naga's modules.
//!
//! A `var<storage, read> x: array<f32>` (or `array<vec4f>`) becomes a storage texture whose rows hold the elements one
//! after the other, and each `x[i]` a call of a function that loads texel `i`. Kernels are written for buffers and don't
//! know. The call stands where the load stood, so each expression keeps its place and the others that use it.
//!
//! Constants are not values in the module: [`Shader::specialise`](super::Shader::specialise) replaces them in the text
//! before it is parsed, because naga's front end computes array sizes, bounds of loops and conditions from them as it parses.

use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex};

use naga::{
    AddressSpace, ArraySize, BinaryOperator, Block, Expression, Function, FunctionArgument, FunctionResult,
    GlobalVariable, Handle, ImageClass, ImageDimension, Literal, Module, Scalar, ScalarKind, Span, Statement,
    StorageAccess, StorageFormat, Type, TypeInner, VectorSize,
};

use super::{Shader, Texel};

/// [`Shader::texel`]: parses each shader once in a process.
pub(super) fn texel(shader: &Shader, binding: usize) -> Option<Texel> {
    // Parts and structs are never freed, so their addresses identify them; comparing all their text would take longer.
    type Place = (usize, usize, usize);
    static KNOWN: LazyLock<Mutex<HashMap<Place, BTreeMap<usize, Texel>>>> = LazyLock::new(Mutex::default);
    let (parts, structs) = (shader.parts, shader.structs);
    let place = (parts.as_ptr() as usize, parts.len(), structs.as_ptr() as usize);
    let mut known = KNOWN.lock().unwrap();
    let texels = known.entry(place).or_insert_with(|| {
        // The device reports why a module can't be parsed.
        parse(&shader.specialise(&[])).map_or_else(|_| BTreeMap::new(), |module| texels(&module))
    });
    texels.get(&binding).copied()
}

/// The module of a text, or what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<Module, String> {
    naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))
}

/// The bindings that can be read through textures, and the texels that these would have.
fn texels(module: &Module) -> BTreeMap<usize, Texel> {
    let mut found: BTreeMap<usize, Option<Texel>> = BTreeMap::new();
    for (handle, global) in module.global_variables.iter() {
        let Some(binding) = read_only(global) else {
            continue;
        };
        let texel = element(module, global).filter(|_| !asks_length(module, handle));
        // Other entry points may read something else there.
        let first = *found.entry(binding).or_insert(texel);
        if first != texel {
            found.insert(binding, None);
        }
    }
    found
        .into_iter()
        .filter_map(|(binding, texel)| Some((binding, texel?)))
        .collect()
}

/// The binding of a storage buffer for reading.
fn read_only(global: &GlobalVariable) -> Option<usize> {
    let reads = AddressSpace::Storage {
        access: StorageAccess::LOAD,
    };
    let binding = global
        .binding
        .filter(|binding| binding.group == 0 && global.space == reads)?;
    Some(binding.binding as usize)
}

/// The texel that holds an element of a buffer that is an array.
fn element(module: &Module, global: &GlobalVariable) -> Option<Texel> {
    let TypeInner::Array {
        base,
        size: ArraySize::Dynamic,
        ..
    } = module.types[global.ty].inner
    else {
        return None;
    };
    match module.types[base].inner {
        TypeInner::Scalar(Scalar::F32) => Some(Texel::One),
        TypeInner::Vector {
            size: VectorSize::Quad,
            scalar: Scalar::F32,
        } => Some(Texel::Four),
        _ => None,
    }
}

/// Whether a function asks for the length of a buffer, which its texture doesn't have.
fn asks_length(module: &Module, buffer: Handle<GlobalVariable>) -> bool {
    let entries = module.entry_points.iter().map(|entry| &entry.function);
    let functions = module.functions.iter().map(|(_, function)| function);
    entries.chain(functions).any(|function| {
        function
            .expressions
            .iter()
            .any(|(_, expression)| match expression {
                Expression::ArrayLength(of) => {
                    function.expressions[*of] == Expression::GlobalVariable(buffer)
                }
                _ => false,
            })
    })
}

/// Makes a module read these bindings, as [`Shader::texel`] allows them, through textures.
pub(crate) fn read_through(module: &mut Module, bindings: &[(usize, Texel)]) {
    let chosen: Vec<(Handle<GlobalVariable>, Texel)> = module
        .global_variables
        .iter()
        .filter_map(|(handle, global)| {
            let binding = read_only(global)?;
            let (_, texel) = bindings.iter().find(|(at, _)| *at == binding)?;
            assert_eq!(
                element(module, global),
                Some(*texel),
                "the elements at binding {binding}"
            );
            assert!(
                !asks_length(module, handle),
                "the length of what is at binding {binding}"
            );
            Some((handle, *texel))
        })
        .collect();
    // Functions call those before them: the new ones come first, and the others move.
    let others: Vec<_> = module
        .functions
        .drain()
        .map(|(_, function, span)| (function, span))
        .collect();
    let loads: HashMap<_, _> = chosen
        .into_iter()
        .map(|(global, texel)| (global, texel_function(module, global, texel)))
        .collect();
    let mut moved = Vec::new();
    for (mut function, span) in others {
        Rewrite {
            loads: &loads,
            moved: &moved,
        }
        .function(&mut function);
        moved.push(module.functions.append(function, span));
    }
    for entry in &mut module.entry_points {
        Rewrite {
            loads: &loads,
            moved: &moved,
        }
        .function(&mut entry.function);
    }
}

/// Turns a buffer into a texture and adds the function that loads a texel by its number.
fn texel_function(module: &mut Module, buffer: Handle<GlobalVariable>, texel: Texel) -> Handle<Function> {
    let mut declare = |inner| module.types.insert(Type { name: None, inner }, Span::UNDEFINED);
    let format = match texel {
        Texel::One => StorageFormat::R32Float,
        Texel::Four => StorageFormat::Rgba32Float,
    };
    let image = declare(TypeInner::Image {
        dim: ImageDimension::D2,
        arrayed: false,
        class: ImageClass::Storage {
            format,
            access: StorageAccess::LOAD,
        },
    });
    let number = declare(TypeInner::Scalar(Scalar::U32));
    let place = declare(TypeInner::Vector {
        size: VectorSize::Bi,
        scalar: Scalar::U32,
    });
    let element = declare(match texel {
        Texel::One => TypeInner::Scalar(Scalar::F32),
        Texel::Four => TypeInner::Vector {
            size: VectorSize::Quad,
            scalar: Scalar::F32,
        },
    });
    let global = module.global_variables.get_mut(buffer);
    (global.space, global.ty) = (AddressSpace::Handle, image);
    let mut function = Function {
        name: global.name.as_ref().map(|name| format!("{name}_texel")),
        arguments: vec![FunctionArgument {
            name: Some("i".into()),
            ty: number,
            binding: None,
        }],
        result: Some(FunctionResult {
            ty: element,
            binding: None,
        }),
        ..Default::default()
    };
    let mut add = |expression| function.expressions.append(expression, Span::UNDEFINED);
    let image = add(Expression::GlobalVariable(buffer));
    let i = add(Expression::FunctionArgument(0));
    let mask = add(Expression::Literal(Literal::U32(Texel::ROW as u32 - 1)));
    let shift = add(Expression::Literal(Literal::U32(Texel::ROW.trailing_zeros())));
    let x = add(Expression::Binary {
        op: BinaryOperator::And,
        left: i,
        right: mask,
    });
    let y = add(Expression::Binary {
        op: BinaryOperator::ShiftRight,
        left: i,
        right: shift,
    });
    let coordinate = add(Expression::Compose {
        ty: place,
        components: vec![x, y],
    });
    let all = add(Expression::ImageLoad {
        image,
        coordinate,
        array_index: None,
        sample: None,
        level: None,
    });
    let value = match texel {
        Texel::One => add(Expression::AccessIndex { base: all, index: 0 }),
        Texel::Four => all,
    };
    let computed = naga::Range::new_from_bounds(x, value);
    let body = vec![
        Statement::Emit(computed),
        Statement::Return { value: Some(value) },
    ];
    function.body = Block::from_vec(body);
    module.functions.append(function, Span::UNDEFINED)
}

/// What a function's expressions and statements become.
struct Rewrite<'a> {
    /// The functions that load the texels of buffers that became textures.
    loads: &'a HashMap<Handle<GlobalVariable>, Handle<Function>>,
    /// The functions before this one, by their old place.
    moved: &'a [Handle<Function>],
}

/// What a pointer points to.
#[derive(Clone, Copy)]
enum Pointer {
    /// A buffer whose texels this function loads.
    Buffer(Handle<Function>),
    /// An element of it; the expression has become its number.
    Element(Handle<Function>),
    /// A component of an element; the expression has become the element, and the load takes the component.
    Component(Component),
}

#[derive(Clone, Copy)]
enum Component {
    Known(u32),
    Computed(Handle<Expression>),
}

/// A call in the place of an expression: the function, and the number of the texel.
type Calls = HashMap<Handle<Expression>, (Handle<Function>, Handle<Expression>)>;

impl Rewrite<'_> {
    fn function(&self, function: &mut Function) {
        let mut pointers = HashMap::new();
        let mut calls = Calls::new();
        for (handle, expression) in function.expressions.iter_mut() {
            let component = match *expression {
                Expression::AccessIndex { index, .. } => Component::Known(index),
                Expression::Access { index, .. } => Component::Computed(index),
                _ => Component::Known(0),
            };
            match *expression {
                Expression::CallResult(called) => {
                    *expression = Expression::CallResult(self.moved[called.index()])
                }
                Expression::GlobalVariable(global) => {
                    if let Some(load) = self.loads.get(&global) {
                        pointers.insert(handle, Pointer::Buffer(*load));
                    }
                }
                Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => {
                    match pointers.get(&base) {
                        None => {}
                        Some(Pointer::Buffer(load)) => {
                            pointers.insert(handle, Pointer::Element(*load));
                            *expression = match component {
                                Component::Known(index) => Expression::Literal(Literal::U32(index)),
                                Component::Computed(expr) => Expression::As {
                                    expr,
                                    kind: ScalarKind::Uint,
                                    convert: Some(4),
                                },
                            };
                        }
                        Some(Pointer::Element(load)) => {
                            calls.insert(handle, (*load, base));
                            *expression = Expression::CallResult(*load);
                            pointers.insert(handle, Pointer::Component(component));
                        }
                        Some(Pointer::Component(_)) => unreachable!("components have none"),
                    }
                }
                Expression::Load { pointer } => match pointers.get(&pointer) {
                    None => {}
                    Some(Pointer::Buffer(_)) => unreachable!("arrays without a length are not loaded"),
                    Some(Pointer::Element(load)) => {
                        calls.insert(handle, (*load, pointer));
                        *expression = Expression::CallResult(*load);
                    }
                    Some(Pointer::Component(Component::Known(index))) => {
                        *expression = Expression::AccessIndex {
                            base: pointer,
                            index: *index,
                        };
                    }
                    Some(Pointer::Component(Component::Computed(index))) => {
                        *expression = Expression::Access {
                            base: pointer,
                            index: *index,
                        };
                    }
                },
                _ => {}
            }
        }
        self.block(&mut function.body, &function.expressions, &calls);
    }

    fn block(&self, block: &mut Block, expressions: &naga::Arena<Expression>, calls: &Calls) {
        let mut result = Block::with_capacity(block.len());
        for (mut statement, span) in std::mem::take(block).span_into_iter() {
            match &mut statement {
                Statement::Emit(range) => {
                    emit(&mut result, range.clone(), span, expressions, calls);
                    continue;
                }
                Statement::Call { function, .. } => *function = self.moved[function.index()],
                Statement::Block(inner) => self.block(inner, expressions, calls),
                Statement::If { accept, reject, .. } => {
                    self.block(accept, expressions, calls);
                    self.block(reject, expressions, calls);
                }
                Statement::Switch { cases, .. } => {
                    cases
                        .iter_mut()
                        .for_each(|case| self.block(&mut case.body, expressions, calls));
                }
                Statement::Loop { body, continuing, .. } => {
                    self.block(body, expressions, calls);
                    self.block(continuing, expressions, calls);
                }
                _ => {}
            }
            result.push(statement, span);
        }
        *block = result;
    }
}

/// Emits a range of expressions but for those that have become calls or literals, which are no part of it.
fn emit(
    block: &mut Block,
    range: naga::Range<Expression>,
    span: Span,
    expressions: &naga::Arena<Expression>,
    calls: &Calls,
) {
    let mut run: Option<(Handle<Expression>, Handle<Expression>)> = None;
    let finish = |run: &mut Option<_>, block: &mut Block| {
        if let Some((first, last)) = run.take() {
            block.push(Statement::Emit(naga::Range::new_from_bounds(first, last)), span);
        }
    };
    for handle in range {
        if let Some(&(function, number)) = calls.get(&handle) {
            finish(&mut run, block);
            let call = Statement::Call {
                function,
                arguments: vec![number],
                result: Some(handle),
            };
            block.push(call, span);
        } else if expressions[handle].needs_pre_emit() {
            finish(&mut run, block);
        } else {
            run = Some((run.map_or(handle, |(first, _)| first), handle));
        }
    }
    finish(&mut run, block);
}

#[cfg(test)]
mod tests {
    use super::*;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    const BUFFERS: &str = "
        @group(0) @binding(1) var<storage, read> x: array<f32>;
        @group(0) @binding(2) var<storage, read> v: array<vec4f>;
        @group(0) @binding(3) var<storage, read_write> y: array<f32>;
        @group(0) @binding(4) var<storage, read> other: array<f32>;\n";

    /// The module that reads `x` and `v` through textures. It is valid, so that every operand is computed before it is used.
    fn changed(functions: &str) -> Module {
        let mut module = parse(&format!("{BUFFERS}{functions}")).unwrap_or_else(|e| panic!("{e}"));
        read_through(&mut module, &[(1, Texel::One), (2, Texel::Four)]);
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
        validator.validate(&module).unwrap_or_else(|e| panic!("{e:?}"));
        module
    }

    /// The functions that the entry point, or the function of that name, calls, in order.
    fn calls(module: &Module, name: &str) -> Vec<String> {
        fn collect(module: &Module, block: &Block, names: &mut Vec<String>) {
            for statement in block {
                match statement {
                    Statement::Call { function, .. } => {
                        names.push(module.functions[*function].name.clone().unwrap());
                    }
                    Statement::Block(inner) => collect(module, inner, names),
                    Statement::If { accept, reject, .. } => {
                        collect(module, accept, names);
                        collect(module, reject, names);
                    }
                    Statement::Switch { cases, .. } => {
                        cases.iter().for_each(|case| collect(module, &case.body, names));
                    }
                    Statement::Loop { body, continuing, .. } => {
                        collect(module, body, names);
                        collect(module, continuing, names);
                    }
                    _ => {}
                }
            }
        }
        let entries = module.entry_points.iter().map(|e| (Some(&e.name), &e.function));
        let functions = module.functions.iter().map(|(_, f)| (f.name.as_ref(), f));
        let mut all = entries.chain(functions);
        let (_, function) = all.find(|(of, _)| of.is_some_and(|of| of == name)).unwrap();
        let mut names = Vec::new();
        collect(module, &function.body, &mut names);
        names
    }

    fn main(body: &str) -> Vec<String> {
        let entry = "@compute @workgroup_size(1) fn main(@builtin(global_invocation_id) at: vec3u)";
        calls(&changed(&format!("{entry} {{ {body} }}")), "main")
    }

    #[test]
    fn buffers_are_read_as_texels_where_all_entry_points_agree_on_them() {
        let module = parse(
            "alias Element = vec4f;
             struct Sums { x: array<f32> }
             @group(0) @binding(1) var<storage, read> x: array<Element>;
             @group(0) @binding(2) var<storage, read> a: array<f32>;
             @group(0) @binding(2) var<storage, read> b: array<u32>;
             @group(0) @binding(3) var<storage, read_write> y: array<f32>;
             @group(0) @binding(4) var<storage, read> s: Sums;
             @group(0) @binding(5) var<storage, read> at: array<f32>;
             @group(0) @binding(5) var<storage, read> at_too: array<f32>;
             @group(0) @binding(6) var<storage, read> asked: array<f32>;
             @group(0) @binding(7) var<storage, read> eight: array<f32, 8>;
             @group(1) @binding(8) var<storage, read> elsewhere: array<f32>;
             @group(0) @binding(9) var<storage, read> before: array<f32>;
             @group(0) @binding(9) var<storage, read_write> after: array<f32>;
             fn f() -> u32 { return arrayLength(&asked) + arrayLength(&y); }",
        );
        let expected = [(1, Texel::Four), (5, Texel::One), (9, Texel::One)];
        assert_eq!(texels(&module.unwrap()), BTreeMap::from(expected));
    }

    #[test]
    fn elements_and_components_are_loaded_where_they_were() {
        assert_eq!(main("y[0] = x[at.x];"), ["x_texel"]);
        assert_eq!(main("let i = i32(at.x) - 1; y[i] = x[i];"), ["x_texel"]);
        assert_eq!(main("y[0] = x[3] + x[4];"), ["x_texel"; 2]);
        assert_eq!(
            main("y[0] = v[at.x].y + v[7].w + v[at.x][at.y] + v[2][at.z];"),
            ["v_texel"; 4]
        );
        assert_eq!(
            main("let all = v[at.x]; y[0] = dot(all.wyx, all.xyz);"),
            ["v_texel"]
        );
        assert_eq!(
            main("let p = &v[at.x]; y[0] = (*p).x + (*p)[at.y] + x[1];"),
            ["v_texel", "v_texel", "x_texel"]
        );
        assert_eq!(main("let p = &x; y[0] = (*p)[at.x];"), ["x_texel"]);
        assert_eq!(
            main("y[u32(x[u32(v[at.x].z)])] = x[u32(y[1])];"),
            ["v_texel", "x_texel", "x_texel"]
        );
        assert_eq!(main("y[0] = other[at.x] + y[1];"), [""; 0]);
    }

    #[test]
    fn loads_are_found_in_every_block() {
        let ifs =
            "if x[at.x] > 0.0 && v[at.x].y > 0.0 { y[0] = x[1]; } else if at.y == 1u { y[0] = v[1].x; }";
        assert_eq!(main(ifs), ["x_texel", "v_texel", "x_texel", "v_texel"]);
        let switch =
            "switch u32(x[at.x]) { case 1u: { y[0] = x[1]; } case 2u, 3u: {} default: { y[0] = v[1].x; } }";
        assert_eq!(main(switch), ["x_texel", "x_texel", "v_texel"]);
        let loops = "for (var k = 0; f32(k) < x[k]; k++) { { y[k] = v[k].x; } if v[k].y > 0.0 { continue; } }
            var k = 0u; loop { y[k] = 1.0; continuing { k += u32(v[k].z); break if x[k] > 0.5; } }";
        let expected = ["x_texel", "v_texel", "v_texel", "v_texel", "x_texel"];
        assert_eq!(main(loops), expected);
    }

    #[test]
    fn functions_that_read_a_buffer_or_call_others_find_the_new_ones() {
        let module = changed(
            "fn one(i: u32) -> f32 { return x[i] * other[i]; }
             fn both(i: i32) -> f32 { return one(u32(i)) + v[i][i & 3] + one(0u); }
             fn nothing() {}
             @compute @workgroup_size(1) fn first() { nothing(); y[0] = both(1) + x[2]; }
             @compute @workgroup_size(1) fn second() { y[1] = one(1u); }",
        );
        assert_eq!(calls(&module, "one"), ["x_texel"]);
        assert_eq!(calls(&module, "both"), ["one", "v_texel", "one"]);
        assert_eq!(calls(&module, "first"), ["nothing", "both", "x_texel"]);
        assert_eq!(calls(&module, "second"), ["one"]);
    }

    #[test]
    #[should_panic(expected = "the length of what is at binding 1")]
    fn a_texture_in_place_of_a_buffer_whose_length_is_asked_for_is_a_programming_error() {
        changed("fn f() -> u32 { return arrayLength(&x); }");
    }

    #[test]
    #[should_panic(expected = "the elements at binding 1")]
    fn a_texture_of_other_texels_is_a_programming_error() {
        let mut module = parse(BUFFERS).unwrap();
        read_through(&mut module, &[(1, Texel::Four)]);
    }
}
