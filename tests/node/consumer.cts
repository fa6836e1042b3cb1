import client = require('@mcpctl/mcprelay-client');

const registrar: client.Registrar = client.startRegistrar({ providers: [] });
void registrar.stop();
