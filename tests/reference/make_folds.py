# /// script
# requires-python = ">=3.11"
# dependencies = ["scikit-learn==1.9.1"]
# ///
"""Writes folds.json: for each number of cases the five validation folds of scikit-learn's shuffled KFold."""

import json
import pathlib

from sklearn.model_selection import KFold

folds = {
    str(n): [v.tolist() for _, v in KFold(5, shuffle=True, random_state=12345).split(range(n))]
    for n in (5, 10, 24, 43, 208)
}
(pathlib.Path(__file__).parent / "folds.json").write_text(json.dumps(folds) + "\n")
