/** What tests of a program that publishes providers need: an agent in the test's own process, and options to call a provider with. */
export { startFakeAgent, FakeAgent, type FakeAgentOptions, type OfferOptions } from './fake-agent.js';
export { FakeSession, type PushedProvider } from './fake-session.js';
export { FakeTask, type FakeAnswer, type FakeError, type FakePiece, type FakeToolCall } from './fake-task.js';
export { testOptions, type TestOptions } from './test-options.js';
