//! Concatenation of maps against stored PyTorch numbers, its reference and central differences.

use crate::common::*;
use obelisk::graph::Graph;
use obelisk::op::StepScalars;
use obelisk::op::concat::concat;
use obelisk::tensor::Spec;

fn sources(data: &Data, g: &mut Graph, count: usize) -> Vec<obelisk::graph::Value> {
    (0..count)
        .map(|i| {
            let name = format!("x{i}");
            g.input(&name, Spec::map(data[&name].ncdhw())).unwrap()
        })
        .collect()
}

#[test]
fn concat_equals_pytorch() {
    let goldens = Goldens::load("concat");
    for (case, attributes) in &goldens.cases {
        let count = attributes["sources"].as_u64().unwrap() as usize;
        let data: Data = (0..count)
            .map(|i| (format!("x{i}"), goldens.get(case, &format!("x{i}")).clone()))
            .collect();
        let mut g = Graph::new();
        let sources = sources(&data, &mut g, count);
        let y = concat(&mut g, &sources).unwrap();
        let values = evaluate(&g, &data, &StepScalars::default());
        assert_close(
            case,
            values[y.index()].as_ref().unwrap(),
            goldens.get(case, "output"),
            1e-6,
        );
    }
}

#[test]
fn concat_of_any_channel_counts_equals_its_reference() {
    for channels in [&[9, 5][..], &[4, 8], &[1, 1, 1, 1, 1], &[3], &[2, 7, 6]] {
        let data: Data = channels
            .iter()
            .enumerate()
            .map(|(i, c)| (format!("x{i}"), noise(&[2, *c, 3, 5, 4], i as u32)))
            .collect();
        let names: Vec<String> = (0..channels.len()).map(|i| format!("x{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let build = |g: &mut Graph| {
            let sources = sources(&data, g, channels.len());
            vec![concat(g, &sources).unwrap()]
        };
        check_op(build, &data, &names, 1e-6, 1e-2, 1e-3);
    }
}

#[test]
fn concat_of_different_sizes_names_them() {
    let mut g = Graph::new();
    let a = g.input("a", Spec::map([1, 4, 2, 3, 4])).unwrap();
    let b = g.input("b", Spec::map([1, 4, 2, 3, 5])).unwrap();
    let error = concat(&mut g, &[a, b]).unwrap_err().to_string();
    assert!(
        error.contains("[1, 4, 2, 3, 5]") && error.contains("same N, D, H and W"),
        "{error}"
    );
}
