// Times models side by side with any onnxruntime for JavaScript: the loop of onnxprune/runner.py,
// so that `onnxprune bench --import` can read what it returns. Runs in Node and in a browser.

const PHASES = 5; // sessions of each model, one after another
const WARM_UP = 5; // rounds of each phase that don't count

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

// A B, B A, A B ...; A B C, B C A, C A B ...
const order = (turn, count) => Array.from({ length: count }, (_, k) => (turn + k) % count);

const tensors = (ort, inputs) =>
  Object.fromEntries(
    inputs.map(({ name, type, dims, data }) => [name, new ort.Tensor(type, data, dims)]),
  );

// models: [{name, size_bytes, data}], data a Uint8Array; cpuMs: CPU time of the process, or null.
export async function measure(ort, models, inputs, { providers, runs, cpuMs }) {
  const feeds = tensors(ort, inputs);
  const rows = models.map(({ name, size_bytes }) => ({
    ...{ name, size_bytes, peak_bytes: null, shares: null },
    ...{ wall_ms: [], cpu_ms: [], loads: [] },
  }));
  const phases = [];
  const outputs = [];
  for (let phase = 0; phase < PHASES; phase++) {
    const sessions = [];
    for (const k of order(phase, models.length)) {
      const start = performance.now();
      sessions[k] = await ort.InferenceSession.create(models[k].data, {
        executionProviders: providers,
        intraOpNumThreads: 1,
        interOpNumThreads: 1,
      });
      rows[k].loads.push(performance.now() - start);
    }
    const share = Math.floor((runs + phase) / PHASES);
    for (let turn = -WARM_UP; turn < share; turn++) {
      for (const k of order(turn + WARM_UP, models.length)) {
        const cpu = cpuMs ? cpuMs() : 0;
        const start = performance.now();
        outputs[k] = await sessions[k].run(feeds);
        const took = performance.now() - start;
        if (turn >= 0) {
          rows[k].wall_ms.push(took);
          rows[k].cpu_ms.push(cpuMs ? cpuMs() - cpu : 0);
        }
      }
      if (turn >= 0) phases.push(phase);
    }
    for (const session of sessions) await session.release();
  }
  const done = rows.map(({ loads, ...row }) => ({ ...row, load_ms: median(loads) }));
  const first = outputs.map((found) =>
    Object.entries(found).map(([name, value]) => [name, Array.from(value.data.slice(0, 1000), Number)]),
  );
  return { batch: { batch: null, phases, interrupted: false, models: done }, outputs: first };
}
