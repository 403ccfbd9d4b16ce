//! What a report is made of: a run's folder, a folder of runs, or scores.

use std::path::{Path, PathBuf};

use toml::{Table as Toml, Value};

use super::log::Log;
use super::{Attachment, ReportError, invalid, scores};
use crate::crossval::{Epoch, FoldResult, Table, fold_result, run_settings};
use crate::evaluate::Methods;
use crate::metrics::{METRICS, Surface, Surfaces};
use crate::train::Settings;

/// A training's folder, read.
#[derive(Clone, Debug)]
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// The name of what was trained: runs of one method differ in their folds.
    pub method: String,
    /// Its settings.
    pub settings: Settings,
    /// Its config.toml as it is.
    pub config: String,
    /// Its log so far.
    pub log: Log,
    /// Its scores, where it is a finished fold of a cross-validation.
    pub result: Option<FoldResult>,
}

impl Run {
    fn read(folder: &Path) -> Result<Run, ReportError> {
        let settings = run_settings(folder)?;
        let path = folder.join("config.toml");
        let config =
            std::fs::read_to_string(&path).or_else(|e| invalid(&path, format!("it can't be read: {e}")))?;
        let result = fold_result(folder)?;
        Ok(Run {
            method: result
                .as_ref()
                .map_or_else(|| settings.arch.clone(), |r| r.title.clone()),
            log: Log::read(&folder.join("log.csv"))?,
            folder: folder.into(),
            settings,
            config,
            result,
        })
    }

    /// What the run is called beside others: its method, and its fold.
    pub fn name(&self) -> String {
        match self.settings.fold {
            Some(fold) => format!("{}, fold {fold}", self.method),
            None => self.method.clone(),
        }
    }

    /// Where a cross-validation has the labels that it predicted of a case.
    pub fn prediction(&self, case: &str) -> Option<PathBuf> {
        let result = self.result.as_ref()?;
        let out = self.folder.parent()?.parent()?;
        let path = crate::crossval::prediction(out, &result.name, case);
        path.is_file().then_some(path)
    }

    /// Files of weights that the run has.
    pub fn weights(&self) -> Vec<PathBuf> {
        let names = ["best.safetensors", "last.safetensors"];
        let paths = names.map(|name| self.folder.join(name));
        paths.into_iter().filter(|path| path.is_file()).collect()
    }

    /// The settings without what differs from fold to fold, and from adapter to adapter.
    fn common(&self) -> Settings {
        Settings {
            fold: None,
            forms: None,
            ..self.settings.clone()
        }
    }
}

/// What a report is made of.
#[derive(Clone, Debug)]
pub enum Source {
    /// Trainings: those of a cross-validation, or others.
    Runs {
        /// By method, then by fold.
        runs: Vec<Run>,
        /// The table of their results, where some have one.
        table: Option<Box<Table>>,
    },
    /// Scores that `evaluate` wrote.
    Scores(Box<Methods>),
}

/// What a command does, and the command.
pub type Command = (String, String);

impl Source {
    /// Finds out what is there: a folder with a config.toml is a run, one with runs in it, or in folders within, is several; a file
    /// holds scores.
    ///
    /// # Errors
    /// Nothing of these, files that can't be read, and results that make no table.
    pub fn open(path: &Path) -> Result<Source, ReportError> {
        if !path.is_dir() {
            return Ok(Source::Scores(Box::new(scores::read(path)?)));
        }
        let mut folders = Vec::new();
        if is_run(path) {
            folders.push(path.to_owned());
        } else {
            for inner in subfolders(path)? {
                match is_run(&inner) {
                    true => folders.push(inner),
                    false => folders.extend(subfolders(&inner)?.into_iter().filter(|f| is_run(f))),
                }
            }
        }
        if folders.is_empty() {
            return invalid(
                path,
                "it is no run, nor are there runs in it: a run has a config.toml, and a cross-validation NAME/fold_K/config.toml",
            );
        }
        let mut runs = folders
            .iter()
            .map(|folder| Run::read(folder))
            .collect::<Result<Vec<_>, _>>()?;
        name_methods(&mut runs);
        runs.sort_by(|a, b| (&a.method, a.settings.fold).cmp(&(&b.method, b.settings.fold)));
        let mut rows: Vec<Vec<FoldResult>> = Vec::new();
        for result in runs.iter().filter_map(|run| run.result.clone()) {
            match rows.iter_mut().find(|row| row[0].name == result.name) {
                Some(row) => row.push(result),
                None => rows.push(vec![result]),
            }
        }
        let table = match rows.is_empty() {
            true => None,
            false => Some(Box::new(Table::new(rows)?)),
        };
        Ok(Source::Runs { runs, table })
    }

    /// The scores that there are without predicting anything.
    pub fn scores(&self) -> Option<Methods> {
        match self {
            Source::Runs { table, .. } => Some(table.as_ref()?.methods()),
            Source::Scores(methods) => Some((**methods).clone()),
        }
    }

    /// Commands that repeat the runs, and the files that these take.
    ///
    /// # Errors
    /// Settings that are no TOML, which can't be.
    pub fn repeat(&self) -> Result<(Vec<Command>, Vec<Attachment>), ReportError> {
        let Source::Runs { runs, table } = self else {
            return Ok(Default::default());
        };
        let finished = || runs.iter().filter_map(|run| run.result.as_ref());
        let (mut commands, mut attachments) = (Vec::new(), Vec::new());
        match (finished().next(), table) {
            (Some(first), Some(table)) => {
                let text = recipe(runs).or_else(|e| invalid(&runs[0].folder, e))?;
                attachments.push(Attachment {
                    title: "Recipe of all networks".into(),
                    file: "recipe.toml".into(),
                    text,
                });
                let metrics: Vec<&str> = table.metrics().iter().map(|i| METRICS[*i].name).collect();
                let metrics = match metrics.len() == METRICS.len() {
                    true => "all".to_owned(),
                    false => metrics.join(","),
                };
                let weights = match first.weights {
                    Epoch::Best => " --weights best",
                    Epoch::Last => "",
                };
                let surfaces = table.surfaces.map_or(String::new(), options);
                // A part of the folds, where all rows have the same one.
                let fold = match table
                    .rows
                    .iter()
                    .map(|row| row.folds.as_slice())
                    .collect::<Vec<_>>()[..]
                {
                    [[only], ref rest @ ..] if table.folds > 1 && rest.iter().all(|r| *r == [*only]) => {
                        format!(" --fold {only}")
                    }
                    _ => String::new(),
                };
                commands.push((
                    "With recipe.toml (below), this repeats the cross-validation:".into(),
                    format!(
                        "obelisk crossval --config recipe.toml --out repeated --metrics {metrics}{surfaces}{weights}{fold}"
                    ),
                ));
            }
            _ => {
                for run in runs {
                    let name = name_of(&run.folder);
                    let (file, out) = match runs.len() {
                        1 => ("config.toml".to_owned(), "repeated".to_owned()),
                        _ => (format!("{name}.toml"), format!("repeated/{name}")),
                    };
                    commands.push((
                        format!(
                            "With {file} (below), this repeats the training of {}:",
                            run.name()
                        ),
                        format!("obelisk train --config {} --out {}", quoted(&file), quoted(&out)),
                    ));
                    attachments.push(Attachment {
                        title: format!("Settings of {}", run.name()),
                        file,
                        text: run.config.clone(),
                    });
                }
            }
        }
        Ok((commands, attachments))
    }
}

/// The options that measure surfaces so.
fn options(surfaces: Surfaces) -> String {
    let kind = match surfaces.definition {
        Surface::Elements => "",
        Surface::Voxels => " --surface voxels",
    };
    let missing = match surfaces.missing.is_finite() {
        true => format!(" --missing {}", surfaces.missing),
        false => String::new(),
    };
    format!(" --tolerance {}{kind}{missing}", surfaces.tolerance)
}

/// A cross-validation's recipe: every row with its settings.
fn recipe(runs: &[Run]) -> Result<String, String> {
    let mut networks = Toml::new();
    let mut dataset = None;
    for (run, result) in runs.iter().filter_map(|run| Some((run, run.result.as_ref()?))) {
        let mut own = Toml::try_from(&run.settings).map_err(|e| e.to_string())?;
        for of_fold in ["fold", "forms"] {
            own.remove(of_fold);
        }
        dataset = dataset.or(own.remove("dataset"));
        own.remove("dataset");
        if result.title != result.name {
            own.insert("title".into(), Value::String(result.title.clone()));
        }
        networks.insert(result.name.clone(), Value::Table(own));
    }
    let mut whole = Toml::new();
    whole.extend(dataset.map(|dataset| ("dataset".to_owned(), dataset)));
    whole.insert("networks".into(), Value::Table(networks));
    toml::to_string(&whole).map_err(|e| e.to_string())
}

fn is_run(folder: &Path) -> bool {
    folder.join("config.toml").is_file()
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let unreadable = |e: std::io::Error| ReportError::Invalid {
        path: folder.into(),
        problem: format!("it can't be read: {e}"),
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A file's or folder's name, also where its path ends in dots.
pub(super) fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Names the methods apart that have one name and more than folds between them.
fn name_methods(runs: &mut [Run]) {
    let kinds: Vec<(String, Settings, Option<String>)> = runs
        .iter()
        .map(|run| {
            let row = run.result.as_ref().map(|result| result.name.clone());
            (run.method.clone(), run.common(), row)
        })
        .collect();
    let same =
        |a: &(String, Settings, Option<String>), b: &(String, Settings, Option<String>)| match (&a.2, &b.2) {
            (Some(a), Some(b)) => a == b,
            _ => a.1 == b.1,
        };
    let folders: Vec<PathBuf> = runs.iter().map(|run| run.folder.clone()).collect();
    for (i, run) in runs.iter_mut().enumerate() {
        let clash = kinds
            .iter()
            .any(|other| other.0 == kinds[i].0 && !same(other, &kinds[i]));
        // Two runs of all the same are told apart, too: only folds make one method of several.
        let twice = kinds.iter().enumerate().any(|(j, other)| {
            j != i
                && same(other, &kinds[i])
                && folders[j].parent() == folders[i].parent()
                && run.result.is_none()
                && run.settings.fold.is_none()
        });
        if clash || twice {
            let of = match &run.result {
                Some(result) => result.name.clone(),
                None => name_of(&run.folder),
            };
            run.method = format!("{} ({of})", run.method);
        }
    }
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+./:,=@".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crossval::rows;

    fn write_run(folder: &Path, settings: &Settings, log: &str) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("config.toml"), toml::to_string(settings).unwrap()).unwrap();
        std::fs::write(folder.join("log.csv"), log).unwrap();
    }

    const LOG: &str = "epoch,learning_rate,loss\n1,0.1,2\n";

    fn settings(arch: &str, fold: Option<usize>) -> Settings {
        Settings {
            fold,
            ..Settings::new("some data".into(), arch)
        }
    }

    #[test]
    fn runs_are_found_alone_and_in_folders() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write_run(&path("cv/a/fold_1"), &settings("unet", Some(1)), LOG);
        write_run(&path("cv/a/fold_0"), &settings("unet", Some(0)), "");
        write_run(&path("cv/b"), &settings("obelisk", None), LOG);
        let open = |name: &str| match Source::open(&path(name)) {
            Ok(Source::Runs { runs, .. }) => runs.iter().map(Run::name).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(open("cv/b"), ["obelisk"]);
        std::fs::remove_file(path("cv/a/fold_0/log.csv")).unwrap();
        assert_eq!(open("cv/a"), ["unet, fold 0", "unet, fold 1"]);
        assert_eq!(open("cv"), ["obelisk", "unet, fold 0", "unet, fold 1"]);
        // the same network with other settings is another method
        let mut other = settings("unet", Some(0));
        other.epochs += 1;
        write_run(&path("cv/c"), &other, LOG);
        assert_eq!(
            open("cv"),
            [
                "obelisk",
                "unet (c), fold 0",
                "unet (fold_0), fold 0",
                "unet (fold_1), fold 1"
            ]
        );
        let empty = path("empty");
        std::fs::create_dir(&empty).unwrap();
        let error = Source::open(&empty).unwrap_err().to_string();
        assert!(
            error.contains("no run") && error.contains("config.toml"),
            "{error}"
        );
        assert!(Source::open(&path("nothing")).is_err());
    }

    #[test]
    fn a_runs_settings_are_what_repeats_it() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("a run");
        write_run(&run, &settings("unet", Some(2)), LOG);
        let (commands, files) = Source::open(&run).unwrap().repeat().unwrap();
        assert_eq!(commands[0].1, "obelisk train --config config.toml --out repeated");
        let (again, unknown) = Settings::parse(&files[0].text).unwrap();
        assert_eq!((again, unknown.len()), (settings("unet", Some(2)), 0));
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn a_recipe_gives_every_row_its_settings() {
        let result = |name: &str, arch: &str| {
            let value = serde_json::json!({
                "name": name, "title": format!("{name} of all"), "settings": settings(arch, Some(0)), "dataset": "some data",
                "folds": 5, "weights": "last", "epoch": 1, "adapter": "a", "labels": [], "cases": [], "parameters": 1,
                "training_bytes": 1, "inference_bytes": 1, "training_peak": 1, "inference_peak": 1, "training_seconds": 1.0,
            });
            serde_json::from_value::<FoldResult>(value).unwrap()
        };
        let run = |name: &str, arch: &str| Run {
            folder: "x".into(),
            method: name.into(),
            settings: settings(arch, Some(0)),
            config: String::new(),
            log: Log::default(),
            result: Some(result(name, arch)),
        };
        let text = recipe(&[run("net", "obelisk"), run("unet", "unet")]).unwrap();
        let rows = rows(&text, None, &[], false).unwrap();
        let found: Vec<_> = rows
            .iter()
            .map(|row| (row.name.as_str(), row.title.as_str(), &row.settings))
            .collect();
        let want = [settings("obelisk", None), settings("unet", None)];
        assert_eq!(
            found,
            [("net", "net of all", &want[0]), ("unet", "unet of all", &want[1])]
        );
        assert!(
            rows.iter().all(|row| row.validates),
            "it says how often to validate"
        );
    }
}
