"""Asks optimum-onnx: in_optimum.py EXPORT ASKED ANSWER."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer

folder, asked, answer = sys.argv[1:]
question = json.loads(Path(asked).read_text())
tokenizer = AutoTokenizer.from_pretrained(folder)
model = ORTModelForSequenceClassification.from_pretrained(folder, provider="CPUExecutionProvider")
logits = []
for text in question["texts"]:
    inputs = tokenizer(text, truncation=True, max_length=question["max_length"], return_tensors="pt")
    logits += model(**inputs).logits.tolist()
versions = {name: version(name) for name in ("optimum-onnx", "transformers", "onnxruntime")}
Path(answer).write_text(json.dumps({"logits": logits, "versions": versions}))
