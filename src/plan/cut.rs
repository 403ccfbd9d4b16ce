//! Less memory for a little more work. A node runs together with producers of what it reads: each is either moved to it or,
//! where others read its value too, repeated there, so that the value need not live in between; and the run goes over the
//! planes in slabs, so that what stands between its nodes never exists as a whole.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::program::{Info, Program, Step};
use crate::graph::{GraphError, Value};
use crate::op::{NodeView, Op, PLANES_AT_ONCE, aligned_slices, planes_bytes};
use crate::tensor::Layout;

/// Share of the program's arithmetic that all runs together may add.
const MOST_ADDED: u64 = 40;
/// Values below this part of the peak stay as they are.
const SMALL: u64 = 200;
/// Producers in a run.
const MOST_PARTS: usize = 6;
/// Starts in all. The hybrid's inference at 144³ finds its lowest peak with the sixth.
const TRIES: usize = 8;
/// A run has to save a hundredth of the peak.
const LEAST_SAVED: u64 = 100;

/// A run: the step that it ends with, the producers before it in order, and the slabs that it goes in.
#[derive(Clone, Debug)]
struct Run {
    last: usize,
    parts: Vec<Part>,
    slabs: usize,
}

#[derive(Clone, Debug)]
struct Part {
    /// The producer's step.
    step: usize,
    /// What repeats it; `None` moves the step itself.
    rematerialised: Option<(Arc<dyn Op>, Vec<Value>)>,
}

/// A run by the nodes in it, and its slabs.
struct Taken {
    nodes: Vec<usize>,
    slabs: usize,
}

impl Taken {
    fn of(program: &Program, run: &Run) -> Self {
        let steps = run.parts.iter().map(|part| part.step).chain([run.last]);
        Taken {
            nodes: steps.map(|t| program.steps[t].node).collect(),
            slabs: run.slabs,
        }
    }
}

/// A run's worth: what it leaves of the peak and of all that is more than half the peak (in hundredths), steps near the
/// peak, operations that it adds, slabs.
type Worth = (u64, u64, usize, u64, usize);

/// Rematerialises what is cheap and would be there at the peak for readers after it alone; then takes the run that saves most,
/// again and again, until none saves enough or the adapter has the memory to spare. The run that seems best at first may be
/// what holds the peak in the end: then all starts anew without it, or with more slabs for it, and the lowest peak counts.
pub(super) fn cut(program: &mut Program) -> Result<(), GraphError> {
    rematerialise(program)?;
    let start = (program.steps.clone(), program.values.clone());
    let mut refused: Vec<Taken> = Vec::new();
    let mut best: Option<(u64, Vec<Step>, Vec<Info>)> = None;
    for _ in 0..TRIES {
        (program.steps, program.values) = start.clone();
        let mut taken = take_runs(program, &refused)?;
        let Some((at, peak)) = highest(&program.usage(&program.lives())) else {
            return Ok(());
        };
        let node = program.steps[at].node;
        if best.as_ref().is_none_or(|(least, ..)| peak < *least) {
            best = Some((peak, program.steps.clone(), program.values.clone()));
        }
        let holds = taken.iter().position(|run| run.nodes.contains(&node));
        match holds.filter(|_| peak > program.caps.spare) {
            Some(run) => refused.push(taken.swap_remove(run)),
            None => break,
        }
    }
    if let Some((_, steps, values)) = best {
        (program.steps, program.values) = (steps, values);
    }
    Ok(())
}

/// The first step at which most is in use, and how much.
fn highest(usage: &[u64]) -> Option<(usize, u64)> {
    let at = (0..usage.len()).max_by_key(|t| (usage[*t], std::cmp::Reverse(*t)))?;
    Some((at, usage[at]))
}

/// Repeats producers before each reader behind the peak, the last producers first: what they read has such readers then.
fn rematerialise(program: &mut Program) -> Result<(), GraphError> {
    let usage = program.usage(&program.lives());
    let latest = (0..usage.len()).max_by_key(|t| usage[*t]);
    let Some((at, peak)) = latest
        .map(|t| (t, usage[t]))
        .filter(|(_, peak)| *peak > program.caps.spare)
    else {
        return Ok(());
    };
    for step in (0..at).rev() {
        let Some(&value) = program.steps[step].outputs.first() else {
            continue;
        };
        let info = &program.values[value.0];
        if info.place.is_some() || info.kept || info.bytes() * SMALL < peak {
            continue;
        }
        let made = &program.steps[step];
        let node = NodeView {
            inputs: made.inputs.clone(),
            outputs: made.outputs.clone(),
        };
        let Some(rematerialised) = made.op.rematerialise(&node, &program.specs(&made.inputs)) else {
            continue;
        };
        // From the last, so that positions before it stay.
        for last in (at + 1..program.steps.len()).rev() {
            let reads = program.steps[last].inputs.contains(&value);
            if reads && !program.changes(&rematerialised.1, step..last) {
                let run = Run {
                    last,
                    parts: vec![Part {
                        step,
                        rematerialised: Some(rematerialised.clone()),
                    }],
                    slabs: 1,
                };
                program.steps = program.emit(&run, true)?.expect("a whole run").0;
            }
        }
    }
    Ok(())
}

/// The runs that it takes; `refused` ones not with as few slabs.
fn take_runs(program: &mut Program, refused: &[Taken]) -> Result<Vec<Taken>, GraphError> {
    let mut taken = Vec::new();
    let flops = |program: &Program| program.steps.iter().map(Step::flops).sum::<u64>();
    let mut left = flops(program) / MOST_ADDED;
    loop {
        let usage = program.usage(&program.lives());
        let Some((at, peak)) = highest(&usage).filter(|(_, peak)| *peak > program.caps.spare) else {
            return Ok(taken);
        };
        let near = |usage: &[u64]| usage.iter().filter(|u| **u > peak - peak / LEAST_SAVED).count();
        // By node: slabs and what is rematerialised count once.
        let more = |steps: &[Step], usage: &[u64]| {
            let mut by_node: BTreeMap<usize, u64> = BTreeMap::new();
            for (step, usage) in steps.iter().zip(usage) {
                let most = by_node.entry(step.node).or_default();
                *most = usage.saturating_sub(peak / 2).max(*most);
            }
            by_node.values().sum::<u64>().max(1)
        };
        let before = (near(&usage), more(&program.steps, &usage));
        let mut best: Option<(Worth, Run)> = None;
        for run in candidates(program, at, peak) {
            let values = program.values.len();
            let would = Taken::of(program, &run);
            let is_refused = |no: &Taken| no.nodes == would.nodes && would.slabs <= no.slabs;
            if refused.iter().any(is_refused) {
                continue;
            }
            let Some((steps, added)) = program.emit(&run, false)? else {
                program.values.truncate(values);
                continue;
            };
            let steps = std::mem::replace(&mut program.steps, steps);
            let usage = program.usage(&program.lives());
            let more = more(&program.steps, &usage);
            program.steps = steps;
            program.values.truncate(values);
            let most = usage.iter().copied().max().unwrap_or(0);
            let worth = (
                most * LEAST_SAVED / peak,
                more * LEAST_SAVED / before.1,
                near(&usage),
                added,
                run.slabs,
            );
            // Less at the peak, or fewer moments like it.
            let saves = most <= peak && worth.2 < before.0;
            if saves && added <= left && best.as_ref().is_none_or(|(b, _)| worth < *b) {
                best = Some((worth, run));
            }
        }
        let Some(((.., added, _), run)) = best else {
            return Ok(taken);
        };
        left -= added;
        taken.push(Taken::of(program, &run));
        program.steps = program.emit(&run, true)?.expect("it was possible before").0;
    }
}

/// Runs that may lower what is in use at step `at`.
fn candidates(program: &Program, at: usize, peak: u64) -> Vec<Run> {
    let mut readers: BTreeMap<Value, Vec<usize>> = BTreeMap::new();
    let mut maker: BTreeMap<Value, Option<usize>> = BTreeMap::new();
    for (t, step) in program.steps.iter().enumerate() {
        step.inputs
            .iter()
            .for_each(|v| readers.entry(*v).or_default().push(t));
        for v in &step.outputs {
            // Several slabs of one value have no single maker.
            let several = maker.contains_key(v);
            maker.insert(*v, (!several).then_some(t));
        }
    }
    let mut runs = Vec::new();
    for last in 0..program.steps.len() {
        if program.steps[last].planes.is_some() || program.steps[last].outputs.is_empty() {
            continue;
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut touches = last == at;
        while parts.len() < MOST_PARTS {
            let inside: Vec<Value> = parts.iter().map(|p| program.steps[p.step].outputs[0]).collect();
            let read = |part: &Part| match &part.rematerialised {
                Some((_, inputs)) => inputs.clone(),
                None => program.steps[part.step].inputs.clone(),
            };
            let mut wanted: Vec<Value> = parts.iter().flat_map(read).collect();
            wanted.extend(&program.steps[last].inputs);
            wanted.sort();
            wanted.dedup();
            wanted.retain(|v| !inside.contains(v));
            let moved: Vec<usize> = parts
                .iter()
                .filter(|p| p.rematerialised.is_none())
                .map(|p| p.step)
                .collect();
            let part = |v: &Value| -> Option<(u64, Value, Part)> {
                let info = &program.values[v.0];
                let step = (*maker.get(v)?)?;
                let made = &program.steps[step];
                let plain =
                    info.place.is_none() && !info.kept && info.window.is_none() && made.planes.is_none();
                if !plain || info.bytes() * SMALL < peak || step >= last {
                    return None;
                }
                let alone = readers[v].iter().all(|r| *r == last || moved.contains(r));
                let rematerialised =
                    if alone && made.outputs.len() == 1 && made.op.writes(made.inputs.len()).is_empty() {
                        None
                    } else if made.outputs.first() == Some(v) {
                        let node = NodeView {
                            inputs: made.inputs.clone(),
                            outputs: made.outputs.clone(),
                        };
                        Some(made.op.rematerialise(&node, &program.specs(&made.inputs))?)
                    } else {
                        return None;
                    };
                let inputs = rematerialised.as_ref().map_or(&made.inputs, |(_, inputs)| inputs);
                let same = !program.changes(inputs, step..last);
                same.then_some((info.bytes(), *v, Part { step, rematerialised }))
            };
            let Some((_, value, part)) = wanted.iter().filter_map(part).max_by_key(|(b, v, _)| (*b, *v))
            else {
                break;
            };
            let until = *readers[&value].last().expect("it is read");
            touches |= part.step <= at && at <= until;
            parts.push(part);
            parts.sort_by_key(|p| p.step);
            if touches {
                runs.extend([1, 2, 4, 8, 16, 32].map(|slabs| Run {
                    last,
                    parts: parts.clone(),
                    slabs,
                }));
            }
        }
    }
    runs
}

impl Program {
    /// The steps with a run in them, and the operations that it adds; new values are appended. Only `complete` steps have
    /// their kernels, others are for judging. `None` where an operation does not go in slabs.
    fn emit(&mut self, run: &Run, complete: bool) -> Result<Option<(Vec<Step>, u64)>, GraphError> {
        let parts = self.parts(run);
        let made = match run.slabs {
            1 => Some(self.emit_whole(&parts, complete)?),
            _ => self.emit_slabs(&parts, run.slabs, complete)?,
        };
        let Some((mut made, added)) = made else {
            return Ok(None);
        };
        let moved: Vec<usize> = parts
            .iter()
            .filter(|p| !p.rematerialised)
            .map(|p| p.step)
            .collect();
        let mut steps = Vec::with_capacity(self.steps.len() + made.len());
        for (t, step) in self.steps.iter().enumerate() {
            if t == run.last {
                steps.append(&mut made);
            } else if !moved.contains(&t) {
                steps.push(step.clone());
            }
        }
        Ok(Some((steps, added)))
    }

    fn emit_whole(&mut self, parts: &[Full], complete: bool) -> Result<(Vec<Step>, u64), GraphError> {
        let mut now: BTreeMap<Value, Value> = BTreeMap::new();
        let (mut made, mut added) = (Vec::new(), 0);
        for (i, part) in parts.iter().enumerate() {
            let inputs: Vec<Value> = part.inputs.iter().map(|v| *now.get(v).unwrap_or(v)).collect();
            let mut outputs = self.steps[part.step].outputs.clone();
            if part.rematerialised {
                outputs = vec![self.copy(part.output, None)];
                now.insert(part.output, outputs[0]);
                added += part.flops;
            }
            let mut step = self.part_step(part, inputs, outputs, None, complete)?;
            if part.rematerialised {
                step.note = "rematerialised".into();
            } else if i + 1 < parts.len() && step.note.is_empty() {
                step.note = "later".into();
            }
            made.push(step);
        }
        Ok((made, added))
    }

    fn emit_slabs(
        &mut self,
        parts: &[Full],
        slabs: usize,
        complete: bool,
    ) -> Result<Option<(Vec<Step>, u64)>, GraphError> {
        let (last, before) = parts.split_last().expect("the run's last step");
        let inside = |v: &Value| before.iter().any(|p| p.output == *v);
        let results = self.steps[last.step].outputs.clone();
        let total = last.op.planes(&self.specs(&last.inputs), &self.specs(&results));
        let step = self.alignment(parts);
        let each = total.div_ceil(slabs).next_multiple_of(step.max(PLANES_AT_ONCE));
        let slabs = total.div_ceil(each);
        if slabs < 2 {
            return Ok(None);
        }
        let mut over = self.over(parts, last.step);
        let (mut made, mut flops) = (Vec::new(), 0);
        for slab in 0..slabs {
            let range = slab * each..total.min((slab + 1) * each);
            // What each part has to make, from the last to the first.
            let mut need: BTreeMap<Value, Range<usize>> = BTreeMap::from([(last.output, range.clone())]);
            for part in parts.iter().rev() {
                let Some(own) = need.get(&part.output).cloned() else {
                    return Ok(None);
                };
                let (inputs, outputs) = (self.specs(&part.inputs), self.specs(&[part.output]));
                let Some(reads) = part.op.reads(&inputs, &outputs, own) else {
                    return Ok(None);
                };
                for ((value, reads), spec) in part.inputs.iter().zip(reads).zip(&inputs) {
                    over.retain(|v| v != value || reads.as_ref() == Some(&range));
                    match reads {
                        Some(reads) if inside(value) => {
                            let planes = spec.shape[0] * spec.shape[2];
                            let from = reads.start / step * step;
                            let to = reads.end.next_multiple_of(step).min(planes);
                            let wanted = need.entry(*value).or_insert(from..to);
                            *wanted = wanted.start.min(from)..wanted.end.max(to);
                        }
                        None if inside(value) => return Ok(None),
                        _ => {}
                    }
                }
            }
            let mut now: BTreeMap<Value, Value> = BTreeMap::new();
            for (i, part) in parts.iter().enumerate() {
                let own = need[&part.output].clone();
                let inputs: Vec<Value> = part.inputs.iter().map(|v| *now.get(v).unwrap_or(v)).collect();
                let outputs = if i + 1 == parts.len() {
                    results.clone()
                } else {
                    let window = planes_bytes(&self.values[part.output.0].spec, &own);
                    let copy = self.copy(part.output, Some(window));
                    now.insert(part.output, copy);
                    vec![copy]
                };
                let all = part.op.planes(&self.specs(&inputs), &self.specs(&outputs)).max(1);
                flops += part.flops * own.len() as u64 / all as u64;
                let mut step = self.part_step(part, inputs, outputs, Some(own.clone()), complete)?;
                let rematerialised = if part.rematerialised {
                    ", rematerialised"
                } else {
                    ""
                };
                step.note = format!("planes {} to {}{rematerialised}", own.start, own.end - 1);
                made.push(step);
            }
        }
        if let Some(over) = over.first() {
            let writers = made.iter_mut().filter(|step| step.outputs == results);
            writers.for_each(|step| step.over = Some(*over));
        }
        // What is moved was done before too.
        let before: u64 = parts.iter().filter(|p| !p.rematerialised).map(|p| p.flops).sum();
        Ok(Some((made, flops.saturating_sub(before))))
    }

    /// Whether a step in the range changes one of the values in place.
    fn changes(&self, values: &[Value], steps: Range<usize>) -> bool {
        self.steps[steps].iter().any(|step| {
            let writes = step.op.writes(step.inputs.len());
            writes.iter().any(|i| values.contains(&step.inputs[*i]))
        })
    }

    /// The run's nodes in order, the last one too.
    fn parts(&self, run: &Run) -> Vec<Full> {
        let full = |step: usize, rematerialised: Option<&(Arc<dyn Op>, Vec<Value>)>| {
            let made = &self.steps[step];
            let (op, inputs) = rematerialised
                .cloned()
                .unwrap_or_else(|| (made.op.clone(), made.inputs.clone()));
            Full {
                step,
                op,
                inputs,
                output: made.outputs[0],
                rematerialised: rematerialised.is_some(),
                flops: made.flops(),
            }
        };
        let parts = run.parts.iter().map(|p| full(p.step, p.rematerialised.as_ref()));
        parts.chain([full(run.last, None)]).collect()
    }

    fn copy(&mut self, value: Value, window: Option<(u64, u64)>) -> Value {
        let info = Info {
            window,
            input: false,
            ..self.values[value.0].clone()
        };
        self.values.push(info);
        Value(self.values.len() - 1)
    }

    fn part_step(
        &self,
        part: &Full,
        inputs: Vec<Value>,
        outputs: Vec<Value>,
        planes: Option<Range<usize>>,
        complete: bool,
    ) -> Result<Step, GraphError> {
        let base = &self.steps[part.step];
        if complete {
            let mut step = self.step(part.op.clone(), base.node, inputs, outputs, planes)?;
            step.note = base.note.clone();
            return Ok(step);
        }
        let over = self.takes_over(&*part.op, &inputs, &outputs);
        Ok(Step {
            op: part.op.clone(),
            inputs,
            outputs,
            planes,
            over,
            ..base.clone()
        })
    }

    /// Planes at whose multiples every value that a run takes apart may be bound.
    fn alignment(&self, parts: &[Full]) -> usize {
        let mut values = Vec::new();
        for part in parts {
            let (inputs, outputs) = (self.specs(&part.inputs), self.specs(&[part.output]));
            let reads = part.op.reads(&inputs, &outputs, 0..1).unwrap_or_default();
            let apart = inputs.into_iter().zip(reads).filter(|(_, reads)| reads.is_some());
            values.extend(apart.map(|(spec, _)| spec));
            values.extend(
                outputs
                    .into_iter()
                    .filter(|spec| spec.shape.len() == 5 && spec.layout == Layout::Map),
            );
        }
        if let Some(last) = parts.last() {
            values.extend(
                self.specs(&[last.output])
                    .into_iter()
                    .filter(|s| s.shape.len() == 5 && s.shape[1] == 1),
            );
        }
        aligned_slices(&values)
    }

    /// Inputs of the parts before the last whose memory the last one's output could take over.
    fn over(&self, parts: &[Full], last: usize) -> Vec<Value> {
        let output = self.steps[last].outputs[0];
        let (last, before) = parts.split_last().expect("the run's last step");
        let inside: Vec<Value> = before.iter().map(|p| p.output).collect();
        let mut over: Vec<Value> = before.iter().flat_map(|p| p.inputs.clone()).collect();
        over.sort();
        over.dedup();
        over.retain(|v| {
            let (info, out) = (&self.values[v.0], &self.values[output.0]);
            let free = info.place.is_none() && !info.kept && info.window.is_none() && out.place.is_none();
            free && info.spec == out.spec && !inside.contains(v) && !last.inputs.contains(v)
        });
        over
    }
}

/// A part with everything that emitting it takes.
struct Full {
    step: usize,
    op: Arc<dyn Op>,
    inputs: Vec<Value>,
    output: Value,
    rematerialised: bool,
    flops: u64,
}
