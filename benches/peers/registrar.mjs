// The natural registrar in Node.js, as a peer for the bench: HTTP by the contract, no packages.
// usage: node registrar.mjs MCPD_URL PROVIDER_ADDRESS whole|token [CA_FILE]
// "whole": a stream's answer is posted as one chunk; "token": one awaited POST per token.
import { connect, events, text } from "./http.mjs";

const [mcpdUrl, providerAddress, mode, caFile] = process.argv.slice(2);
const mcpd = await connect(mcpdUrl, caFile);
const provider = await connect(`http://${providerAddress}`);

async function work(task) {
  let part = 0;
  const post = async (body) => {
    const headers = { "idempotency-key": `${task.taskId}/${part++}` };
    const path = `/api/v1/llms/_provider-task/${task.taskId}/result`;
    await text(await mcpd("POST", path, JSON.stringify(body), headers));
  };
  const reply = await provider("POST", "/v1/chat/completions", JSON.stringify(task.request));
  if (!task.streaming) return post({ status: 200, body: JSON.parse(await text(reply)) });
  let whole = "";
  for await (const event of events(reply)) {
    const data = event.slice("data: ".length);
    if (data === "[DONE]") continue;
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
const reply = await mcpd("POST", "/api/v1/llms/_provider-register", JSON.stringify(register));
const { providerSessionId } = JSON.parse(await text(reply));
const channel = await mcpd("GET", "/api/v1/llms/_provider-stream", undefined, {
  "x-mcpctl-provider-session": providerSessionId,
  accept: "text/event-stream",
});
for await (const event of events(channel)) {
  const [, kind, data] = /^event: (\S+)\ndata: (.*)$/s.exec(event) ?? [];
  if (kind === "task") work(JSON.parse(data)).catch((error) => console.error(error));
}
