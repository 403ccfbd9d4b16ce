//! Dropout: rate, determinism, independence of steps, channels and nodes, gradient.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::StepScalars;
use obelisk::op::dropout::{channel_dropout, dropout};
use obelisk::tensor::{Spec, Tensor};

fn step(step: u32, seed: u32) -> StepScalars {
    StepScalars {
        step,
        seed,
        ..Default::default()
    }
}

fn one(spec: Spec, by_channel: bool, rate: f32) -> (Graph, Value, Data) {
    let mut g = Graph::new();
    let x = g.input("x", spec.clone()).unwrap();
    let add = if by_channel { channel_dropout } else { dropout };
    let y = add(&mut g, x, rate).unwrap();
    g.keep("y", y);
    (g, y, Data::from([("x".into(), Tensor::full(&spec.shape, 1.0))]))
}

fn mask(graph: &Graph, y: Value, data: &Data, step: &StepScalars) -> Vec<bool> {
    let values = evaluate(graph, data, step);
    values[y.index()]
        .as_ref()
        .unwrap()
        .data
        .iter()
        .map(|v| *v != 0.0)
        .collect()
}

#[test]
fn devices_draw_the_reference_s_mask_whatever_the_layout_and_split() {
    for shape in [
        [2, 5, 3, 4, 5],
        [1, 1, 1, 1, 1],
        [3, 9, 2, 7, 11],
        [2, 4, 2, 24, 32],
    ] {
        for (spec, by_channel) in [
            (Spec::map(shape), false),
            (Spec::map(shape), true),
            (Spec::flat(&shape), false),
        ] {
            let (g, _, mut data) = one(spec.clone(), by_channel, 0.3);
            data.insert("x".into(), noise(&shape, 1));
            for step in [step(0, 0), step(7, 12345)] {
                check_on_devices(&g, &data, &step, 1e-6);
                check_with_binding(&g, &data, &step, 1e-6, 24 << 10);
            }
        }
    }
    let (map, y_map, data) = one(Spec::map([2, 5, 3, 4, 5]), false, 0.5);
    let (flat, y_flat, _) = one(Spec::flat(&[2, 5, 3, 4, 5]), false, 0.5);
    let at = step(3, 9);
    assert_eq!(mask(&map, y_map, &data, &at), mask(&flat, y_flat, &data, &at));
}

#[test]
fn the_gradient_passes_where_the_value_passed() {
    for (spec, by_channel) in [
        (Spec::map([2, 5, 3, 4, 5]), false),
        (Spec::map([3, 7, 2, 3, 2]), true),
        (Spec::flat(&[2, 33]), false),
    ] {
        let data = Data::from([("x".into(), noise(&spec.shape, 1))]);
        let build = |g: &mut Graph| {
            let x = g.input("x", spec.clone()).unwrap();
            let add = if by_channel { channel_dropout } else { dropout };
            // Two in a row: each has its own stream.
            let y = add(g, x, 0.4).unwrap();
            vec![add(g, y, 0.2).unwrap()]
        };
        check_op(build, &data, &["x"], 1e-6, 1e-2, 1e-4);
    }
}

#[test]
fn the_rate_is_as_asked_and_draws_are_independent() {
    let n = 100_000.0;
    // Four standard deviations of a share p over n draws.
    let bound = |p: f64| 4.0 * (p * (1.0 - p) / n).sqrt();
    for rate in [0.1, 0.5, 0.9] {
        let (g, y, data) = one(Spec::flat(&[100_000]), false, rate);
        let keep = 1.0 - rate as f64;
        let masks: Vec<Vec<bool>> = [step(0, 1), step(1, 1), step(0, 2), step(1000, 1)]
            .iter()
            .map(|s| mask(&g, y, &data, s))
            .collect();
        for (i, a) in masks.iter().enumerate() {
            let share = a.iter().filter(|k| **k).count() as f64 / n;
            assert!((share - keep).abs() < bound(keep), "rate {rate}: {share} kept");
            // Neighbours, and planes of 2^k elements, agree as often as independent draws.
            for lag in [1, 2, 4, 64, 1024, 20_736] {
                let both = (0..100_000 - lag).filter(|j| a[*j] && a[j + lag]).count() as f64;
                let share = both / (n - lag as f64);
                assert!(
                    (share - keep * keep).abs() < 1.5 * bound(keep * keep),
                    "lag {lag}: {share}"
                );
            }
            for b in &masks[..i] {
                let both = a.iter().zip(b).filter(|(a, b)| **a && **b).count() as f64 / n;
                assert!(
                    (both - keep * keep).abs() < bound(keep * keep),
                    "{both} kept twice"
                );
            }
        }
        // The mean survives: kept elements are scaled up.
        let values = evaluate(&g, &data, &step(0, 1));
        let mean = values[y.index()]
            .as_ref()
            .unwrap()
            .data
            .iter()
            .map(|v| *v as f64)
            .sum::<f64>()
            / n;
        assert!((mean - 1.0).abs() < bound(keep) / keep, "mean {mean}");
        assert_eq!(mask(&g, y, &data, &step(0, 1)), masks[0]);
    }
}

#[test]
fn channels_go_whole_and_at_the_asked_rate() {
    let shape = [40, 50, 1, 2, 3];
    let (g, y, data) = one(Spec::map(shape), true, 0.5);
    let mask = mask(&g, y, &data, &step(4, 5));
    let kept = mask.chunks(6).filter(|c| c[0]).count();
    assert!(mask.chunks(6).all(|c| c.iter().all(|k| *k == c[0])));
    // 2000 channels: four standard deviations are 89.
    assert!((kept as i32 - 1000).abs() < 89, "{kept} of 2000 kept");
}

#[test]
fn a_rate_of_zero_keeps_everything_and_one_is_refused() {
    let (g, y, data) = one(Spec::flat(&[1000]), false, 0.0);
    assert!(mask(&g, y, &data, &step(0, 0)).iter().all(|k| *k));
    let mut g = Graph::new();
    let x = g.input("x", Spec::flat(&[4])).unwrap();
    assert!(dropout(&mut g, x, 1.0).unwrap_err().to_string().contains("not 1"));
    assert!(
        channel_dropout(&mut g, x, 0.5)
            .unwrap_err()
            .to_string()
            .contains("map")
    );
}
