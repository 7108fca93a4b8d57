"""Asks OpenVINO's reader of ONNX: in_openvino.py EXPORT ASKED ANSWER."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

sys.modules["openvino_telemetry"] = None  # reports every import where it can be imported
import openvino  # noqa: E402

folder, asked, answer = map(Path, sys.argv[1:])
question = json.loads(asked.read_text())
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(question["max_length"])
settings = {"INFERENCE_PRECISION_HINT": "f32"}  # left to itself it computes in bfloat16 on CPUs that have it
compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", settings)
logits = []
for text in question["texts"]:
    encoded = tokenizer.encode(text)
    inputs = {
        "input_ids": np.array([encoded.ids]),
        "attention_mask": np.array([encoded.attention_mask]),
        "token_type_ids": np.array([encoded.type_ids]),
    }
    request = compiled.create_infer_request()
    request.start_async(inputs)
    request.wait()
    logits += request.get_tensor("logits").data.tolist()
answer.write_text(json.dumps({"logits": logits, "versions": {"openvino": version("openvino")}}))
