// What the Node.js peers of the bench share: HTTP with what Node has, and an event stream's events.
import { readFileSync } from "node:fs";
import http from "node:http";
import http2 from "node:http2";
import https from "node:https";
import tls from "node:tls";

// A function (method, path, body?, headers?) that gives the reply as a stream. With a CA file it goes over TLS, and the
// server's ALPN chooses between HTTP/1.1 and HTTP/2, as it does for every client.
export async function connect(url, caFile) {
  if (!caFile) return overHttp1(http, new http.Agent({ keepAlive: true }), url);
  const ca = readFileSync(caFile);
  const { hostname: host, port } = new URL(url);
  const socket = tls.connect({ host, port, ca, ALPNProtocols: ["h2", "http/1.1"] });
  await new Promise((resolve, reject) => socket.once("secureConnect", resolve).once("error", reject));
  if (socket.alpnProtocol === "h2") return overHttp2(http2.connect(url, { createConnection: () => socket }));
  socket.destroy();
  return overHttp1(https, new https.Agent({ keepAlive: true, ca }), url);
}

const headersOf = (bytes) => ({
  authorization: "Bearer bench",
  ...(bytes && { "content-type": "application/json", "content-length": bytes.length }),
});

function overHttp1({ request }, agent, url) {
  const { hostname: host, port } = new URL(url);
  return (method, path, body, headers) =>
    new Promise((resolve, reject) => {
      const bytes = body && Buffer.from(body);
      const sent = request({ agent, host, port, method, path, headers: { ...headersOf(bytes), ...headers } }, resolve);
      sent.on("error", reject);
      sent.setNoDelay(true);
      sent.end(bytes);
    });
}

function overHttp2(session) {
  return (method, path, body, headers) =>
    new Promise((resolve, reject) => {
      const bytes = body && Buffer.from(body);
      const sent = session.request({ ":method": method, ":path": path, ...headersOf(bytes), ...headers });
      sent.on("error", reject);
      sent.on("response", () => resolve(sent));
      sent.end(bytes);
    });
}

export async function text(reply) {
  reply.setEncoding("utf8");
  let all = "";
  for await (const piece of reply) all += piece;
  return all;
}

export async function* events(reply) {
  reply.setEncoding("utf8");
  let pending = "";
  for await (const piece of reply) {
    pending += piece;
    for (let end; (end = pending.indexOf("\n\n")) >= 0; pending = pending.slice(end + 2)) yield pending.slice(0, end);
  }
}
