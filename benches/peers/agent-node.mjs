// The same provider as the registrar's, published with the package beside the agent, as mcplocal does it.
// usage: node agent-node.mjs PACKAGE_FOLDER SOCKET PROVIDER_ADDRESS
import { connect, events, text } from "./http.mjs";

const [folder, socketPath, providerAddress] = process.argv.slice(2);
const { startRegistrar } = await import(`${folder}/dist/esm/index.js`);
const provider = await connect(`http://${providerAddress}`);
const ask = (options) => provider("POST", "/v1/chat/completions", JSON.stringify(options));

startRegistrar({
  socketPath,
  logger: { ...console, debug() {}, info() {}, log() {} },
  providers: [{
    name: "bench",
    type: "openai",
    model: "m",
    publish: true,
    maxInFlight: 20_000,
    async complete(options) {
      return JSON.parse(await text(await ask(options)));
    },
    async *stream(options) {
      for await (const event of events(await ask(options))) {
        const data = event.slice("data: ".length);
        if (data === "[DONE]") continue;
        const content = JSON.parse(data).choices[0].delta.content;
        if (content) yield content;
      }
    },
  }],
});
