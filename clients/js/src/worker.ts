/** The script of the SharedWorker: it has the connection of one shared subscription. */

import { serve } from "./shared.js";

const scope = globalThis as unknown as { name: string; onconnect: (event: MessageEvent) => void };
const accept = serve(scope.name);
scope.onconnect = ({ ports }) => accept(ports[0]!);
