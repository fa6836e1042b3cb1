// The natural registrar in Node.js, as a peer for the bench: plain HTTP by the contract, no packages.
// usage: node registrar.mjs MCPD_ADDRESS PROVIDER_ADDRESS whole|token
// "whole": a stream's answer is posted as one chunk; "token": one awaited POST per token.
import http from "node:http";

const [mcpd, provider, mode] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true });
const address = (text) => ({ host: text.split(":")[0], port: Number(text.split(":")[1]) });

function call(to, method, path, body, headers = {}) {
  return new Promise((resolve, reject) => {
    const bytes = body === undefined ? undefined : Buffer.from(body);
    const own = bytes ? { "content-type": "application/json", "content-length": bytes.length } : {};
    const authorized = { authorization: "Bearer bench", ...own, ...headers };
    const request = http.request({ agent, ...address(to), method, path, headers: authorized }, resolve);
    request.on("error", reject);
    request.setNoDelay(true);
    request.end(bytes);
  });
}

async function text(reply) {
  reply.setEncoding("utf8");
  let all = "";
  for await (const piece of reply) all += piece;
  return all;
}

async function* events(reply) {
  reply.setEncoding("utf8");
  let pending = "";
  for await (const piece of reply) {
    pending += piece;
    for (let end; (end = pending.indexOf("\n\n")) >= 0; pending = pending.slice(end + 2)) yield pending.slice(0, end);
  }
}

async function work(task) {
  let part = 0;
  const post = async (body) => {
    const headers = { "idempotency-key": `${task.taskId}/${part++}` };
    const path = `/api/v1/llms/_provider-task/${task.taskId}/result`;
    await text(await call(mcpd, "POST", path, JSON.stringify(body), headers));
  };
  const reply = await call(provider, "POST", "/v1/chat/completions", JSON.stringify(task.request));
  if (!task.streaming) return post({ status: 200, body: JSON.parse(await text(reply)) });
  let whole = "";
  for await (const event of events(reply)) {
    const data = event.slice("data: ".length);
    if (data === "[DONE]") break;
    if (mode === "token") await post({ chunk: { data } });
    else whole += JSON.parse(data).choices[0].delta.content ?? "";
  }
  if (mode === "whole") {
    const choices = [{ index: 0, delta: { role: "assistant", content: whole }, finish_reason: "stop" }];
    await post({ chunk: { data: JSON.stringify({ object: "chat.completion.chunk", choices }) } });
  }
  await post({ chunk: { data: "[DONE]", done: true } });
}

const register = { providerSessionId: null, providers: [{ name: "bench", type: "openai", model: "m" }] };
const reply = await call(mcpd, "POST", "/api/v1/llms/_provider-register", JSON.stringify(register));
const { providerSessionId } = JSON.parse(await text(reply));
const channel = await call(mcpd, "GET", "/api/v1/llms/_provider-stream", undefined, {
  "x-mcpctl-provider-session": providerSessionId,
  accept: "text/event-stream",
});
for await (const event of events(channel)) {
  const [, kind, data] = /^event: (\S+)\ndata: (.*)$/s.exec(event) ?? [];
  if (kind === "task") work(JSON.parse(data)).catch((error) => console.error(error));
}
