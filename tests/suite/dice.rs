//! Soft and hinge Dice against stored PyTorch numbers, their references and central differences.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::StepScalars;
use obelisk::op::soft_dice::{hinge_dice, soft_dice};
use obelisk::tensor::{Spec, Tensor};

type Loss = fn(&mut Graph, Value, Value, bool) -> Result<Value, obelisk::graph::GraphError>;

fn build(g: &mut Graph, data: &Data, loss: Loss, squared: bool) -> Value {
    let logits = g.input("logits", Spec::map(data["logits"].ncdhw())).unwrap();
    let labels = g.input("labels", Spec::flat(&data["labels"].shape)).unwrap();
    loss(g, logits, labels, squared).unwrap()
}

#[test]
fn dice_losses_equal_pytorch() {
    for (file, loss) in [("soft_dice", soft_dice as Loss), ("dice_hinge", hinge_dice)] {
        let goldens = Goldens::load(file);
        assert!(goldens.cases.len() > 1);
        for (case, attributes) in &goldens.cases {
            let logits = goldens.get(case, "logits").clone();
            let [n, _, d, h, w] = logits.ncdhw();
            let labels = Tensor::new(&[n, 1, d, h, w], goldens.get(case, "labels").data.clone());
            let data = Data::from([("logits".into(), logits), ("labels".into(), labels)]);
            let mut g = Graph::new();
            let loss = build(&mut g, &data, loss, attributes["squared"].as_bool().unwrap());
            let wrt = g.find("logits").unwrap();
            let upstream = goldens.get(case, "upstream").data[0];
            let seed = g
                .push1(obelisk::op::fill::Fill::new(&[1], upstream), &[])
                .unwrap();
            let gradient = g.gradients_from(&[(loss, seed)], &[wrt]).unwrap()[0].unwrap();
            g.keep("loss", loss);
            g.keep("gradient", gradient);
            let values = evaluate(&g, &data, &StepScalars::default());
            let value = |v: Value| values[v.index()].as_ref().unwrap();
            let output = Tensor::new(&[1], goldens.get(case, "output").data.clone());
            assert_close(&format!("{file} {case}"), value(loss), &output, 1e-5);
            assert_close(
                &format!("{file} {case} gradient"),
                value(gradient),
                goldens.get(case, "grad_logits"),
                1e-4,
            );
            check_on_devices(&g, &data, &StepScalars::default(), 2e-5);
        }
    }
}

/// Random logits, and labels of every class with some ignored.
fn scene(shape: [usize; 5]) -> Data {
    let [n, classes, d, h, w] = shape;
    let labels = Tensor::from_fn(&[n, 1, d, h, w], |i| {
        ((i * 7 + i / 5) % (classes + 1)) as f32 - 1.0
    });
    Data::from([("logits".into(), noise(&shape, 3)), ("labels".into(), labels)])
}

#[test]
fn dice_losses_equal_their_references_and_central_differences() {
    for (shape, squared) in [([1, 2, 1, 1, 3], false), ([2, 5, 3, 2, 5], true)] {
        let data = scene(shape);
        check_op(
            |g| vec![build(g, &data, soft_dice, squared)],
            &data,
            &["logits"],
            2e-5,
            5e-2,
            1e-2,
        );
        check_op(
            |g| vec![build(g, &data, hinge_dice, squared)],
            &data,
            &["logits"],
            1e-4,
            5e-2,
            1e-2,
        );
    }
}

#[test]
fn dice_losses_reduce_more_voxels_than_there_are_partial_sums() {
    let data = scene([2, 9, 9, 33, 19]);
    let mut g = Graph::new();
    let loss = build(&mut g, &data, soft_dice, false);
    let wrt = g.find("logits").unwrap();
    let gradient = g.gradients(loss, &[wrt]).unwrap()[0].unwrap();
    g.keep("loss", loss);
    g.keep("gradient", gradient);
    check_on_devices(&g, &data, &StepScalars::default(), 2e-5);
}

#[test]
fn dice_of_a_scan_without_any_label_is_finite() {
    let shape = [1, 3, 2, 3, 4];
    let labels = Tensor::full(&[1, 1, 2, 3, 4], -1.0);
    let data = Data::from([("logits".into(), noise(&shape, 3)), ("labels".into(), labels)]);
    let mut g = Graph::new();
    let loss = build(&mut g, &data, soft_dice, false);
    g.keep("loss", loss);
    check_on_devices(&g, &data, &StepScalars::default(), 1e-6);
}
