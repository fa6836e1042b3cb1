// A registrar in Node.js as one writes it first, with fetch, as a peer for the bench: plain HTTP by the contract, no packages.
// usage: node registrar-fetch.mjs MCPD_ADDRESS PROVIDER_ADDRESS
const [mcpd, provider] = process.argv.slice(2);
async function call(to, method, path, body, headers = {}) {
  return fetch(`http://${to}${path}`, { method, body, headers: { authorization: "Bearer bench", "content-type": "application/json", ...headers } });
}
async function* events(reply) {
  const decoder = new TextDecoder();
  let pending = "";
  for await (const piece of reply.body) {
    pending += decoder.decode(piece, { stream: true });
    for (let end; (end = pending.indexOf("\n\n")) >= 0; pending = pending.slice(end + 2)) yield pending.slice(0, end);
  }
}
async function work(task) {
  let part = 0;
  const post = async (body) => {
    const headers = { "idempotency-key": `${task.taskId}/${part++}` };
    await (await call(mcpd, "POST", `/api/v1/llms/_provider-task/${task.taskId}/result`, JSON.stringify(body), headers)).text();
  };
  const reply = await call(provider, "POST", "/v1/chat/completions", JSON.stringify(task.request));
  if (!task.streaming) return post({ status: 200, body: await reply.json() });
  let whole = "";
  for await (const event of events(reply)) {
    const data = event.slice("data: ".length);
    if (data === "[DONE]") break;
    whole += JSON.parse(data).choices[0].delta.content ?? "";
  }
  const choices = [{ index: 0, delta: { role: "assistant", content: whole }, finish_reason: "stop" }];
  await post({ chunk: { data: JSON.stringify({ object: "chat.completion.chunk", choices }) } });
  await post({ chunk: { data: "[DONE]", done: true } });
}
const register = { providerSessionId: null, providers: [{ name: "bench", type: "openai", model: "m" }] };
const { providerSessionId } = await (await call(mcpd, "POST", "/api/v1/llms/_provider-register", JSON.stringify(register))).json();
const channel = await call(mcpd, "GET", "/api/v1/llms/_provider-stream", undefined, { "x-mcpctl-provider-session": providerSessionId, accept: "text/event-stream" });
for await (const event of events(channel)) {
  const [, kind, data] = /^event: (\S+)\ndata: (.*)$/s.exec(event) ?? [];
  if (kind === "task") work(JSON.parse(data)).catch((error) => console.error(error));
}
