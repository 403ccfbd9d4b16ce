//! `obelisk report` as its users meet it: on a cross-validation of the sample cases, on one training, and on scores. And the scalars
//! of a training for TensorBoard. `OBELISK_REPORTS=FOLDER` keeps the pages to be looked at.

use std::path::{Path, PathBuf};

use obelisk::train::tensorboard::{self, What, records};

use crate::program::*;

const TINY: &[&str] = &[
    "--size",
    "8,8,8",
    "--spacing",
    "8,8,8",
    "--epochs",
    "2",
    "--steps",
    "4",
    "--batch",
    "1",
    "--samples",
    "32",
];

/// A folder for a test's pages, and what removes it.
fn folder(name: &str) -> (PathBuf, Option<tempfile::TempDir>) {
    match std::env::var_os("OBELISK_REPORTS") {
        Some(folder) => (Path::new(&folder).join(name), None),
        None => {
            let folder = tempfile::tempdir().unwrap();
            (folder.path().join(name), Some(folder))
        }
    }
}

/// Runs the program with arguments in which `@` stands for the folder and `#` for the sample dataset.
fn run(folder: &Path, arguments: &str, more: &[&str]) -> std::process::Output {
    let (folder, data) = (folder.to_str().unwrap().to_owned(), data());
    let fill = |word: &str| word.replace('@', &folder).replace('#', data.to_str().unwrap());
    let words: Vec<String> = arguments.split(' ').map(fill).collect();
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    obelisk(&words)
}

fn count(page: &str, part: &str) -> usize {
    page.matches(part).count()
}

/// What every page is: whole, small, and without anything that a browser would fetch.
fn check_page(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert!(page.len() < 10_000_000, "{}", page.len());
    assert!(page.contains("default-src 'none'"));
    for tag in ["<link", "<iframe", "<img", "src=\"", "url(http", "@import"] {
        assert!(!page.contains(tag), "{tag}");
    }
    let mut parts = page.split("base64,");
    let first = parts.next().unwrap();
    let pictures =
        parts.map(|part| part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "+/=".contains(c)));
    assert!(
        std::iter::once(first)
            .chain(pictures)
            .all(|part| !part.contains("NaN"))
    );
    for tag in ["section", "table", "figure", "svg", "article", "details", "div"] {
        let (opened, closed) = (
            count(page, &format!("<{tag} ")) + count(page, &format!("<{tag}>")),
            count(page, &format!("</{tag}>")),
        );
        assert_eq!(opened, closed, "{tag}");
    }
}

#[test]
fn of_a_cross_validation_has_all_folds_and_the_cases_that_were_predicted() {
    if !adapter() {
        return;
    }
    let (folder, _kept) = folder("crossval");
    std::fs::create_dir_all(&folder).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let arguments = "crossval # --arch obelisk --folds 2 --metrics dice,hd95 --validate-every 1 --out @/runs";
    done(&run(&folder, arguments, TINY));
    let report = "report @/runs --output @/report.html";
    // No device is opened: the folds' predictions are there.
    let told = run(&folder, report, &["--adapter", "there is none of this name"]);
    assert!(done(&told).contains("report.html ("));
    let page = read("report.html");
    check_page(&page);
    for part in [
        "<h1>data: 2-fold cross-validation of obelisk</h1>",
        "Training loss",
        "Learning rate",
        "Validation Dice %, mean over folds",
        "Spread of the offsets",
        "fold 1",
        "9 trained on, 9 held out",
        "obelisk: 18 cases",
        "With recipe.toml (below)",
        "obelisk crossval --config recipe.toml --out repeated --metrics dice,hd95 --tolerance 1",
        "[networks.obelisk]",
        concat!("obelisk ", env!("CARGO_PKG_VERSION")),
        "obelisk/fold_1/last.safetensors",
        "imagesTr/hippocampus_007.nii.gz",
    ] {
        assert!(page.contains(part), "`{part}` is not in the page");
    }
    // three worst and three best, in three planes, each with a picture of the scan and one of the labels
    assert_eq!(count(&page, "<article"), 6);
    assert_eq!(count(&page, "type=\"range\""), 18);
    assert_eq!(count(&page, "data:image/png;base64,"), 36);
    // the same bytes again, and no file that exists is replaced
    refused(&run(&folder, report, &[]), 1, "--force");
    done(&run(&folder, report, &["--force"]));
    assert_eq!(read("report.html"), page);

    // Predictions that are gone are made again, by the fold that held the case out; they are the same.
    std::fs::rename(
        folder.join("runs/obelisk/predictions"),
        folder.join("predictions"),
    )
    .unwrap();
    done(&run(&folder, "report @/runs --output @/again.html", &[]));
    assert_eq!(read("again.html"), page);
    done(&run(
        &folder,
        "report @/runs --output @/few.html --cases 1 --no-hashes --title A&B",
        &[],
    ));
    let few = read("few.html");
    check_page(&few);
    assert!(few.contains("<h1>A&amp;B</h1>") && !few.contains("imagesTr/"));
    assert_eq!(count(&few, "<article"), 2);

    // Of one fold, half of the cases; of one row, all.
    done(&run(
        &folder,
        "report @/runs/obelisk/fold_0 --output @/fold.html --no-overlays",
        &[],
    ));
    let fold = read("fold.html");
    check_page(&fold);
    assert!(fold.contains("Only part of the folds is finished") && fold.contains("obelisk: 9 cases"));
    assert_eq!(count(&fold, "<article"), 0);
    done(&run(
        &folder,
        "report @/runs/obelisk --output @/row.html --no-overlays",
        &[],
    ));
    assert!(read("row.html").contains("obelisk: 18 cases"));

    // Scores, with the predictions that they are of.
    let scores = "report @/runs/scores.json --output @/scores.html --dataset # --predictions @/predictions";
    done(&run(&folder, scores, &[]));
    let scores = read("scores.html");
    check_page(&scores);
    assert_eq!(count(&scores, "<article"), 6);
    assert!(scores.contains("obelisk: 18 cases") && scores.contains("hippocampus_007.nii.gz"));
    let views =
        |page: &str| page[page.find("<article").unwrap()..page.rfind("</article>").unwrap()].to_owned();
    assert_eq!(views(&scores), views(&page));

    // An output that is an input is refused, and so is what makes no sense.
    let over = "report @/runs --output @/runs/obelisk/fold_0/config.toml --force";
    refused(&run(&folder, over, &[]), 2, "never written to");
    refused(
        &run(
            &folder,
            "report @/runs --output @/x.html --predictions @/predictions",
            &[],
        ),
        2,
        "--predictions is for scores",
    );
    refused(
        &run(&folder, "report @/predictions --output @/x.html", &[]),
        1,
        "no run",
    );
    refused(
        &run(&folder, "report @/runs/table.json --output @/x.html", &[]),
        1,
        "no scores",
    );
    let lost = run(
        &folder,
        "report @/runs --output @/x.html --dataset @/predictions",
        &[],
    );
    refused(&lost, 1, "dataset.json");
    assert!(!folder.join("x.html").exists());
}

#[test]
fn of_a_training_scores_its_held_out_cases() {
    if !adapter() {
        return;
    }
    let (folder, _kept) = folder("training");
    std::fs::create_dir_all(&folder).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let train = "train # --arch obelisk --fold 0 --tensorboard --out @/run";
    done(&run(&folder, train, TINY));

    let bytes = std::fs::read(folder.join("run").join(tensorboard::FILE)).unwrap();
    let (found, length) = records(&bytes);
    assert_eq!(length, bytes.len());
    let scalars = found.iter().filter_map(|record| match &record.what {
        Some(What::Summary(summary)) => Some((record.step, summary)),
        _ => None,
    });
    let by_tag = |tag: &str| -> Vec<(i64, f32)> {
        scalars
            .clone()
            .flat_map(|(step, summary)| summary.value.iter().map(move |value| (step, value)))
            .filter(|(_, value)| value.tag == tag)
            .map(|(step, value)| (step, value.simple_value.unwrap()))
            .collect()
    };
    assert_eq!(by_tag("step/loss").len(), 2 * 4);
    // those of the log
    let log = read("run/log.csv");
    let second = log.lines().nth(2).unwrap().split(',').nth(2).unwrap();
    let [first, (2, loss)] = by_tag("epoch/loss")[..] else {
        panic!("{:?}", by_tag("epoch/loss"));
    };
    assert_eq!(
        (first.0, format!("{loss:.4}")),
        (1, format!("{:.4}", second.parse::<f64>().unwrap()))
    );
    for tag in [
        "validation_dice/mean",
        "validation_dice/Anterior",
        "validation_dice/Posterior",
    ] {
        assert_eq!(by_tag(tag).len(), 2, "{tag}");
    }

    done(&run(
        &folder,
        "report @/run --output @/report.html --metrics dice,volume_error --cases 2",
        &[],
    ));
    let page = read("report.html");
    check_page(&page);
    for part in [
        "<h1>data: training of obelisk</h1>",
        "14 trained on, 4 held out",
        "scored best on these cases themselves",
        "volume error ml",
        "obelisk: 4 cases",
        "obelisk train --config config.toml --out repeated",
        "Validation Dice %",
    ] {
        assert!(page.contains(part), "`{part}` is not in the page");
    }
    assert_eq!(count(&page, "<article"), 4);
    done(&run(
        &folder,
        "report @/run --output @/plain.html --no-overlays --dataset #",
        &[],
    ));
    let plain = read("plain.html");
    check_page(&plain);
    assert!(!plain.contains("id=\"scores\"") && plain.contains("Training loss"));

    // A dataset that has moved is asked for, unless it is not needed.
    let config = read("run/config.toml").replace(data().to_str().unwrap(), "/nowhere");
    std::fs::write(folder.join("run/config.toml"), config).unwrap();
    let moved = "report @/run --output @/moved.html";
    refused(&run(&folder, moved, &[]), 1, "--dataset says where");
    done(&run(&folder, moved, &["--no-overlays"]));
    assert!(read("moved.html").contains("The dataset is not where the training had it"));
}
