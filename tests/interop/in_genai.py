"""Asks ONNX Runtime GenAI: in_genai.py EXPORT ASKED ANSWER."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import onnxruntime_genai as genai

folder, asked, answer = sys.argv[1:]
question = json.loads(Path(asked).read_text())
model = genai.Model(folder)
logits, tokens = [], []
for prompt in question["prompts"]:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + question["new_tokens"])
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    logits.append(generator.get_logits().reshape(-1).tolist())
    while not generator.is_done():
        generator.generate_next_token()
    tokens.append([int(token) for token in generator.get_sequence(0)][len(prompt) :])
versions = {name: version(name) for name in ("onnxruntime-genai", "onnxruntime")}
Path(answer).write_text(json.dumps({"logits": logits, "tokens": tokens, "versions": versions}))
