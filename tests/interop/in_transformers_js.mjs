// Asks transformers.js: in_transformers_js.mjs EXPORT ASKED ANSWER.
import { readFileSync, writeFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { AutoModelForSequenceClassification, AutoTokenizer, Tensor, env } from "@huggingface/transformers";

const [folder, asked, answer] = process.argv.slice(2);
const question = JSON.parse(readFileSync(asked, "utf8"));
env.allowRemoteModels = false;
env.localModelPath = `${dirname(folder)}/`;
// the graph lies in the folder itself, not in `onnx/`; `dtype` only chooses the file name, and "fp32" is model.onnx
const options = { device: "cpu", dtype: "fp32", subfolder: "", local_files_only: true };
const tokenizer = await AutoTokenizer.from_pretrained(basename(folder), { local_files_only: true });
const model = await AutoModelForSequenceClassification.from_pretrained(basename(folder), options);
// its own truncation drops the closing special token of a long text, which every other tokenizer keeps
const cut = (tensor) => {
  const row = tensor.tolist()[0];
  if (row.length <= question.max_length) return tensor;
  const kept = [...row.slice(0, question.max_length - 1), row.at(-1)];
  return new Tensor("int64", BigInt64Array.from(kept, BigInt), [1, kept.length]);
};
const logits = [];
for (const text of question.texts) {
  const encoded = Object.entries(await tokenizer(text));
  const inputs = Object.fromEntries(encoded.map(([name, tensor]) => [name, cut(tensor)]));
  logits.push(...(await model(inputs)).logits.tolist());
}
const read = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8")).version;
const versions = {
  "@huggingface/transformers": env.version,
  "onnxruntime-node": read("onnxruntime-node"),
  node: process.versions.node,
};
writeFileSync(answer, JSON.stringify({ logits, versions }));
