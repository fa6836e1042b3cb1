/** The bridge's service as grpc-js's server takes it. */
import type { MethodDefinition, ServiceDefinition } from '@grpc/grpc-js';
import { codecOf, pathOf, type Codec } from '../wire.js';

interface Streams {
  request: boolean;
  response: boolean;
}

function method(name: string, request: Codec<object>, response: Codec<object>, streams: Streams): MethodDefinition<object, object> {
  return {
    path: pathOf(name),
    requestStream: streams.request,
    responseStream: streams.response,
    requestSerialize: request.encode,
    requestDeserialize: request.decode,
    responseSerialize: response.encode,
    responseDeserialize: response.decode,
  };
}

export const SERVICE: ServiceDefinition = {
  Session: method('Session', codecOf('SessionRequest'), codecOf('SessionResponse'), { request: true, response: true }),
  WatchStatus: method('WatchStatus', codecOf('WatchStatusRequest'), codecOf('WatchStatusResponse'), { request: false, response: true }),
  GetUsage: method('GetUsage', codecOf('GetUsageRequest'), codecOf('GetUsageResponse'), { request: false, response: false }),
  SetPaused: method('SetPaused', codecOf('SetPausedRequest'), codecOf('SetPausedResponse'), { request: false, response: false }),
};
