// A vitest user's test against fake-mcpd and the real agent, from the packed packages.
import { binaryPath, startAgent, startFakeMcpd, type Verdict } from '@mcpctl/mcprelay';
import { expect, test } from 'vitest';

const config = { llm: { providers: [{ name: 'echo', type: 'echo', model: 'echo-1', publish: true }] } };

test('await using starts both programs, and stops them at the end of the block', async () => {
  let ended: Promise<unknown>;
  {
    await using mcpd = await startFakeMcpd({ profile: 'given' });
    await using agent = await startAgent({ mcpd, config, provide: true });
    ended = Promise.all([agent.exited, mcpd.exited]);
    await agent.online();
    await mcpd.fault('drop');
    const verdict: Verdict = await mcpd.verdict();
    expect(verdict.violations).toEqual([]);
    expect(binaryPath('mcprelay')).toContain('node_modules');
  }
  expect(await ended).toEqual([{ code: 0, signal: null }, { code: 0, signal: null }]);
});
