'use strict';
const { ProgramNotFoundError, binaryPath } = require('./binary.js');
const { startAgent } = require('./agent.js');
const { startFakeMcpd } = require('./fake-mcpd.js');

// One by one, so that an ESM import finds the names.
exports.ProgramNotFoundError = ProgramNotFoundError;
exports.binaryPath = binaryPath;
exports.startAgent = startAgent;
exports.startFakeMcpd = startFakeMcpd;
