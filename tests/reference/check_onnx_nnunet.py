# /// script
# requires-python = ">=3.10"
# dependencies = ["nnunetv2==2.8.1", "onnxruntime==1.*", "torch==2.*"]
# ///
"""nnU-Net's own preparation of scans around ONNX files: `check_onnx_nnunet.py MODEL SCANS OUTPUT FILE.onnx …`.

MODEL is a folder TRAINER__PLANS__CONFIGURATION of nnU-Net's. Its network is replaced by the files, of which each has one fold or the
mean of several, and its predictor, mirroring off, segments the scans of the folder SCANS into the folder OUTPUT. nnU-Net rounds each
fold's logits to half precision, so that the mean of folds in one file may give other labels where two are all but equal. Beside labels
it prints by how much the logits of a tile differ from those of nnU-Net's network in PyTorch.
"""

import os
import sys

for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(name, "/tmp")

import json
import pathlib

import numpy as np
import onnxruntime
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


class Replacement(torch.nn.Module):
    """onnxruntime in the place of a network; its parameters are sessions."""

    def forward(self, image):
        return torch.from_numpy(self.session.run(["logits"], {"image": image.float().numpy()})[0])

    def load_state_dict(self, session):
        self.session = session


def main(model, scans, output, *paths):
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths]
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), verbose=False, allow_tqdm=False)
    network = Replacement()
    for path, session in zip(paths, sessions):
        folds = json.loads(session.get_modelmeta().custom_metadata_map["record"])["folds"]
        folds = [fold if fold == "all" else int(fold) for fold in folds]
        predictor.initialize_from_trained_model_folder(model, use_folds=folds, checkpoint_name="checkpoint_final.pth")
        shape = session.get_inputs()[0].shape
        tile = torch.from_numpy(np.random.default_rng(3).standard_normal(shape).astype(np.float32))
        theirs = 0
        with torch.no_grad():
            for parameters in predictor.list_of_parameters:
                predictor.network.load_state_dict(parameters)
                theirs = theirs + predictor.network.eval()(tile) / len(folds)
        network.load_state_dict(session)
        apart = (theirs - network(tile)).abs().max()
        print(f"{path}: logits of a tile differ by {apart:.2e} of {theirs.abs().max():.2e}")

    predictor.network, predictor.list_of_parameters = network, sessions
    pathlib.Path(output).mkdir(exist_ok=True)
    predictor.predict_from_files(scans, output, save_probabilities=False, overwrite=True, num_processes_preprocessing=1,
                                 num_processes_segmentation_export=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
