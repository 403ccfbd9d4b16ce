//! `obelisk check`: every fault of a dataset at once, what is odd, and the plan that follows.

use std::path::Path;

use crate::program::{copy, data, done, obelisk, refused};
use obelisk::train::Settings;
use obelisk::volume;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_sound_dataset_has_a_fingerprint_and_a_plan() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, json) = (folder.path().join("plan.toml"), folder.path().join("report.json"));
    let data = data();
    let command = [
        "check",
        text(&data),
        "--plan",
        text(&plan),
        "--json",
        text(&json),
        "--arch",
        "nnunet:8,16,32,64,64",
    ];
    let told = done(&obelisk(&command));
    for part in [
        "cases         18",
        "Anterior",
        "ml, in 18 cases",
        "grid         48 × 64 × 48 voxels",
    ] {
        assert!(told.contains(part), "{told}");
    }
    assert!(!told.contains("fault"), "{told}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["fingerprint"]["labels"][0]["cases"], 18);
    let settings = std::fs::read_to_string(&plan).unwrap();
    let (settings, unknown) = Settings::parse(&settings).unwrap();
    assert!(unknown.is_empty());
    // Rounded up to what five stages take.
    assert_eq!(settings.size, Some([48, 64, 48]));
    refused(&obelisk(&command), 1, "--force");
}

#[test]
fn every_fault_is_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let copied = folder.path().join("data");
    copy(&data(), &copied);
    let label = |id: u32| copied.join(format!("labelsTr/hippocampus_{id:03}.nii.gz"));
    let image = |id: u32| copied.join(format!("imagesTr/hippocampus_{id:03}.nii.gz"));
    std::fs::remove_file(label(7)).unwrap();
    std::fs::remove_file(image(26)).unwrap();
    std::fs::write(image(57), "no scan").unwrap();
    // A label that dataset.json does not have.
    let map = volume::read(&label(87)).unwrap();
    let values: Vec<i32> = map.labels().unwrap().iter().map(|v| v * 5).collect();
    volume::write_labels(&label(87), &values, &map.geometry, true).unwrap();
    // A map on another grid.
    std::fs::copy(label(104), label(136)).unwrap();
    // Remarks: an empty map, a scan without contrast, and one twice.
    let map = volume::read(&label(154)).unwrap();
    volume::write_labels(&label(154), &vec![0; map.data.len()], &map.geometry, true).unwrap();
    let scan = volume::read(&image(171)).unwrap();
    volume::write_image(&image(171), &vec![3.0; scan.data.len()], &scan.geometry, true).unwrap();
    std::fs::copy(image(193), image(222)).unwrap();
    std::fs::copy(label(193), label(222)).unwrap();
    let output = obelisk(&["check", text(&copied)]);
    let told = String::from_utf8(output.stdout.clone()).unwrap();
    for part in [
        "hippocampus_007.nii.gz: the file of the case hippocampus_007 is missing",
        "hippocampus_026.nii.gz: the file of the case hippocampus_026 is missing",
        "fault: ",
        "hippocampus_057.nii.gz: ",
        "hippocampus_087.nii.gz: it holds the label ",
        "hippocampus_136.nii.gz: the label map is not on the grid of its scan",
        "remark: ",
        "hippocampus_154.nii.gz: nothing in it has a label",
        "all its voxels of MRI are 3",
        "hippocampus_222.nii.gz: its voxels are those of",
        "cases         13",
    ] {
        assert!(told.contains(part), "`{part}` is not in\n{told}");
    }
    assert_eq!(told.matches("fault: ").count(), 5, "{told}");
    refused(&output, 1, "there are 5 faults");
    refused(&obelisk(&["check", text(folder.path())]), 1, "no dataset.json");
    refused(&obelisk(&["check", text(&copied), "--arch", "vnet"]), 2, "vnet");
}
