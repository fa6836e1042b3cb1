import client = require('@mcpctl/mcprelay-client');
import testing = require('@mcpctl/mcprelay-client/testing');

const registrar: client.Registrar = client.startRegistrar({ providers: [] });
void registrar.stop();
void testing.startFakeAgent().then((agent: testing.FakeAgent) => agent.close());
