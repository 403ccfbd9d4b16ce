//! Recipes: what every network of a comparison shares, and where they differ.

use std::path::Path;

use toml::{Table, Value};

use super::CrossvalError;
use crate::model;
use crate::train::Settings;

/// A row of the table: a network and its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its folder's name, and the network's where the recipe does not say otherwise.
    pub name: String,
    /// What the table calls it.
    pub title: String,
    /// Its training.
    pub settings: Settings,
    /// Whether the recipe says how often to validate.
    pub validates: bool,
}

/// The rows of a comparison. `recipe` is TOML: settings of [`Settings`] for all, `[networks.NAME]` tables with those
/// that differ, and there also `arch` where NAME is not the network, and `title` for the table. With `paper = true`, in
/// the recipe or as the argument, what it leaves open is as in [`Settings::paper`], else as in [`Settings::new`].
/// `names` picks rows, or names networks that the recipe does not have; empty for all of the recipe's. `dataset`
/// overrides the recipe's.
///
/// # Errors
/// TOML that can't be read, unknown settings or networks, no network or no dataset at all.
pub fn rows(
    recipe: &str,
    dataset: Option<&Path>,
    names: &[String],
    paper: bool,
) -> Result<Vec<Row>, CrossvalError> {
    let wrong = |problem: String| CrossvalError::Recipe(problem);
    let mut common: Table = recipe
        .parse()
        .map_err(|e: toml::de::Error| wrong(e.to_string()))?;
    let networks = match common.remove("networks") {
        None => Table::new(),
        Some(Value::Table(networks)) => networks,
        Some(_) => return Err(wrong("`networks` must be tables, [networks.NAME]".into())),
    };
    if common.contains_key("fold") {
        return Err(wrong("a recipe is for every fold; leave `fold` out".into()));
    }
    if let Some(dataset) = dataset {
        common.insert(
            "dataset".into(),
            Value::String(dataset.to_string_lossy().into_owned()),
        );
    }
    if paper {
        common.insert("paper".into(), Value::Boolean(true));
    }
    if !common.contains_key("dataset") {
        return Err(wrong("name the DATASET folder".into()));
    }
    let names: Vec<String> = match names.is_empty() {
        true => networks.keys().cloned().collect(),
        false => names.to_vec(),
    };
    if names.is_empty() {
        return Err(CrossvalError::NoNetworks);
    }
    let mut found: Vec<Row> = Vec::new();
    for name in names {
        if found.iter().any(|r| r.name == name) {
            return Err(wrong(format!("`{name}` is named twice")));
        }
        let own = match networks.get(&name) {
            None => Table::new(),
            Some(Value::Table(own)) => own.clone(),
            Some(_) => return Err(wrong(format!("`{name}` must be a table, [networks.{name}]"))),
        };
        found.push(row(&common, own, &name)?);
    }
    Ok(found)
}

fn row(common: &Table, own: Table, name: &str) -> Result<Row, CrossvalError> {
    let wrong = |problem: &dyn std::fmt::Display| CrossvalError::Recipe(format!("{name}: {problem}"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+.".contains(c);
    if !name.chars().all(plain) || name.starts_with(['.', '-']) {
        return Err(wrong(
            &"a row's name is its folder's: letters, digits, and _ - + . within",
        ));
    }
    let mut told = common.clone();
    told.extend(own);
    let text = |told: &mut Table, key: &str| match told.remove(key) {
        None => Ok(name.to_owned()),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(wrong(&format!("`{key}` must be text"))),
    };
    let title = text(&mut told, "title")?;
    let arch = text(&mut told, "arch")?;
    let network = &model::find(&arch).map_err(|e| wrong(&e))?;
    let start = match told.remove("paper") {
        None | Some(Value::Boolean(false)) => Settings::new("".into(), network.name),
        Some(Value::Boolean(true)) => Settings::paper("".into(), network),
        Some(_) => return Err(wrong(&"`paper` must be true or false")),
    };
    let mut table = Table::try_from(start).map_err(|e| wrong(&e))?;
    told.remove("forms"); // a run's record of its adapter, where its settings serve as a recipe
    let validates = told.contains_key("validate_every");
    table.extend(told);
    let (settings, unknown) = Settings::of(table).map_err(|e| wrong(&e))?;
    if !unknown.is_empty() {
        return Err(wrong(&format!("unknown settings: {}", unknown.join(", "))));
    }
    Ok(Row {
        name: name.to_owned(),
        title,
        settings,
        validates,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Folds;
    use crate::train::Loss;

    const RECIPE: &str = r#"
        folds = 4
        epochs = 300
        batch = 4
        learning_rate = 0.002

        [networks.unet]
        title = "All-conv U-Net"
        loss = "cross-entropy"

        [networks."hybrid++"]
        arch = "obelisk-hybrid"
        batch = 1
    "#;

    #[test]
    fn rows_have_the_common_settings_and_their_own_in_the_recipes_order() {
        let rows = rows(RECIPE, Some(Path::new("data")), &[], false).unwrap();
        let names: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["unet", "hybrid++"]);
        assert_eq!(
            (rows[0].title.as_str(), rows[1].title.as_str()),
            ("All-conv U-Net", "hybrid++")
        );
        assert_eq!(rows[0].settings.arch, "unet");
        assert_eq!(rows[0].settings.loss, Loss::CrossEntropy);
        assert_eq!((rows[0].settings.batch, rows[1].settings.batch), (4, 1));
        for row in &rows {
            assert_eq!(row.settings.dataset, Path::new("data"));
            assert_eq!(
                (row.settings.epochs, row.settings.folds),
                (300, Some(Folds::Count(4)))
            );
            assert_eq!(row.settings.learning_rate, 0.002);
            assert_eq!(row.settings.affine, Settings::new("".into(), "unet").affine);
            assert!(!row.validates);
        }
    }

    #[test]
    fn names_pick_rows_and_add_networks() {
        let names = ["unet".to_owned(), "obelisk-hybrid".to_owned()];
        let picked = rows(RECIPE, Some(Path::new("data")), &names, false).unwrap();
        assert_eq!(picked[0].title, "All-conv U-Net");
        assert_eq!(
            (picked[1].settings.arch.as_str(), picked[1].settings.batch),
            ("obelisk-hybrid", 4)
        );
    }

    #[test]
    fn the_papers_settings_are_what_a_recipe_starts_from() {
        let data = Path::new("data");
        let names = ["unet".to_owned(), "obelisk-hybrid".to_owned()];
        for (recipe, argument) in [("paper = true\nbatch = 2", false), ("batch = 2", true)] {
            let rows = rows(recipe, Some(data), &names, argument).unwrap();
            for row in rows {
                let mut paper = Settings::paper(data.into(), &model::find(&row.name).unwrap());
                paper.batch = 2;
                assert_eq!(row.settings, paper);
            }
        }
        assert!(rows("paper = 1", Some(data), &names, false).is_err());
    }

    #[test]
    fn mistakes_in_recipes_are_named() {
        let data = Some(Path::new("data"));
        for (recipe, names, part) in [
            ("epoch = 3", "unet", "epoch"),
            ("[networks.nonesuch]", "", "there is no network `nonesuch`"),
            ("fold = 1", "unet", "leave `fold` out"),
            ("", "", "[networks.NAME]"),
            ("networks = 3", "unet", "[networks.NAME]"),
            ("[networks.\"../unet\"]\narch = \"unet\"", "", "folder"),
            ("epochs = \"many\"", "unet", "unet"),
            ("epochs = = 2", "unet", "TOML"),
        ] {
            let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
            let error = rows(recipe, data, &names, false).unwrap_err().to_string();
            assert!(error.contains(part), "{recipe}: {error}");
        }
        let twice = ["unet".to_owned(), "unet".to_owned()];
        assert!(
            rows("", data, &twice, false)
                .unwrap_err()
                .to_string()
                .contains("twice")
        );
        assert!(
            rows("", None, &twice[..1], false)
                .unwrap_err()
                .to_string()
                .contains("DATASET")
        );
    }
}
