// The examples of the guide, taken out of its text and run as they are, with a small server in a model's place.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { contentOf, Mcpd, newHome, Program, REPO, startAgent, stopAll, until } from './parts.mjs';

const MODEL = 'qwen3:8b';
const guide = readFileSync(join(REPO, 'docs/guides/connecting-mcplocal.md'), 'utf8');

let mcpd;
let home;
let agent;
let model;

before(async () => {
  mcpd = await Mcpd.start();
  home = newHome(mcpd);
  agent = startAgent(home);
  model = createServer(answerLikeOllama).listen(0, '127.0.0.1');
  await once(model, 'listening');
});

after(async () => {
  model?.close();
  await stopAll();
  home?.remove();
});

/** Speaks enough of OpenAI's protocol, and like an Ollama it knows its own models only. */
async function answerLikeOllama(request, response) {
  const parts = [];
  for await (const part of request) parts.push(part);
  const body = JSON.parse(Buffer.concat(parts));
  const choice = (more) => JSON.stringify({ id: 'c', created: 1, model: MODEL, choices: [{ index: 0, ...more }] });
  if (body.model !== MODEL) {
    response.writeHead(404, { 'content-type': 'application/json' });
    return response.end(JSON.stringify({ error: { message: `model "${body.model}" not found` } }));
  }
  if (!body.stream) return response.end(choice({ message: { role: 'assistant', content: 'one two' }, finish_reason: 'stop' }));
  const events = [choice({ delta: { content: 'one' } }), choice({ delta: { content: ' two' } }), choice({ delta: {}, finish_reason: 'stop' }), '[DONE]'];
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  // Without the last line end, as some servers do it.
  return response.end(events.map((event) => `data: ${event}`).join('\n\n'));
}

/** The guide's code block that begins with a comment naming this file, as a running program. */
function runExample(file) {
  const block = new RegExp(`\`\`\`js\\n(// ${file.replace('.', '\\.')}\\n[\\s\\S]*?)\`\`\``).exec(guide);
  assert.ok(block, `the guide has no example ${file}`);
  const path = fileURLToPath(new URL(file, import.meta.url));
  writeFileSync(path, block[1]);
  const env = { HOME: home.root, OLLAMA_URL: `http://127.0.0.1:${model.address().port}`, OLLAMA_MODEL: MODEL };
  const program = new Program(file, process.execPath, [path], env);
  program.exited.finally(() => rmSync(path, { force: true }));
  return program;
}

for (const [file, name] of [['publish.mjs', 'my-laptop'], ['by-hand.mjs', 'by-hand']]) {
  test(`the guide's ${file} publishes a model, answers both ways and stops when it is told to`, async () => {
    const program = runExample(file);
    await mcpd.row(name, 'active');
    await until('callers can use it', async () => (await mcpd.plain(name)).status === 200);
    assert.equal(await mcpd.answer(name), 'one two');
    assert.equal(contentOf(await mcpd.streamed(name)), 'one two');
    const exit = await program.stop();
    assert.deepEqual(exit, { code: 0, signal: null });
    await mcpd.row(name, 'inactive');
  });
}
