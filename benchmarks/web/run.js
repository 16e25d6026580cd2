// node run.js FOLDER native|wasm|chromium RUNS: times the models of FOLDER/web.json, JSON to stdout.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { measure } from "./loop.js";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array };
const TYPES = { ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const [folder, where, runs] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const settings = JSON.parse(readFileSync(path.join(folder, "web.json"), "utf8"));

async function inNode() {
  const native = where === "native";
  const ort = await import(native ? "onnxruntime-node" : "onnxruntime-web");
  if (!native) ort.env.wasm.numThreads = 1;
  const read = (file) => new Uint8Array(readFileSync(path.join(folder, file)));
  const models = settings.models.map((model) => ({ ...model, data: read(model.file) }));
  const inputs = settings.inputs.map((input) => {
    return { ...input, data: new ARRAYS[input.type](read(input.file).buffer) };
  });
  const cpuMs = () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e3;
  };
  const providers = [native ? "cpu" : "wasm"];
  const found = await measure(ort, models, inputs, { providers, runs, cpuMs });
  return { ...found, version: ort.env.versions.common, agent: `Node ${process.version}` };
}

function served() {
  const server = createServer((request, response) => {
    const name = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const root = name.startsWith("/data/") ? folder : HERE;
    const file = path.join(root, name.replace(/^\/data\//, ""));
    try {
      if (name === "/") {
        response.setHeader("Content-Type", "text/html");
        response.end("<!doctype html><title>onnxprune</title>");
        return;
      }
      if (!file.startsWith(root)) throw new Error("outside");
      response.setHeader("Content-Type", TYPES[path.extname(file)] ?? "application/octet-stream");
      response.end(readFileSync(file));
    } catch {
      response.statusCode = 404;
      response.end();
    }
  });
  return new Promise((done) => server.listen(0, "127.0.0.1", () => done(server)));
}

async function inChromium() {
  const { default: puppeteer } = await import("puppeteer-core");
  const server = await served();
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu"],
    protocolTimeout: 600_000,
  });
  try {
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    const found = await page.evaluate(
      async (settings, runs) => {
        const ort = await import("/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs");
        const { measure } = await import("/loop.js");
        ort.env.wasm.numThreads = 1;
        const read = async (file) => (await fetch(`/data/${file}`)).arrayBuffer();
        const models = [];
        for (const model of settings.models) {
          models.push({ ...model, data: new Uint8Array(await read(model.file)) });
        }
        const kinds = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array };
        const inputs = [];
        for (const input of settings.inputs) {
          inputs.push({ ...input, data: new kinds[input.type](await read(input.file)) });
        }
        const measured = await measure(ort, models, inputs, { providers: ["wasm"], runs, cpuMs: null });
        const adapter = await navigator.gpu?.requestAdapter();
        return { ...measured, version: ort.env.versions.common, webgpu: Boolean(adapter) };
      },
      settings,
      runs,
    );
    return { ...found, agent: await browser.version() };
  } finally {
    await browser.close();
    server.close();
  }
}

const { batch, outputs, version, agent, webgpu } = await (where === "chromium" ? inChromium() : inNode());
const machine = {
  processor: os.cpus()[0]?.model ?? "?",
  system: `${agent}, ${os.type()} ${os.release()}`,
  cores: os.cpus().length,
  onnxruntime: version,
};
const target = { provider: where === "native" ? "CPUExecutionProvider" : "wasm", threads: 1 };
const result = { format: 1, machine, target: { ...target, webgpu: webgpu ?? null }, batches: [batch] };
process.stdout.write(JSON.stringify({ result, outputs }));
