// The interpreter of a context in JavaScript: reads requests as lines of JSON, answers on its standard output.
//
// Requests come through descriptor 3; standard input is empty. Outputs are raw; what the interpreter itself says stands between two
// NULs, behind the number of the request. The code is evaluated as in a console of a browser (`replMode`): `let`, `const` and `class`
// may be declared again, and `await` may stand at the top.
//
// A request comes in two lines: one with the code, which is answered `loaded`, and one with its id and `run`. Code that was given up
// before its second line never runs: the next request takes its place.
//
// An interrupt ends the wait for code that awaits; nothing in Node ends the code itself, which goes on when what it awaits is there.
// Each execution has a mark that follows it through promises and timers, and by which what such code writes is left out. What it
// does beside writing, and what programs write that it has started, is done.
(() => {
  'use strict';
  // The code may declare these names for itself.
  const world = globalThis;
  const { ArrayBuffer, Buffer, Number, Object, Promise, String, Symbol, TypeError, process, require } = world;
  const { AsyncLocalStorage } = require('async_hooks');
  const fs = require('fs');
  const inspector = require('inspector');
  const net = require('net');
  const stream = require('stream');
  const util = require('util');
  const vm = require('vm');

  const LONGEST_TEXT = 1 << 18; // characters of a result as text
  const LONGEST_TRACE = 64 << 10; // characters of a traceback, and of a message
  const LONGEST_RESULT = 6 << 20; // bytes of all forms of a result
  const DISPLAY = Symbol.for('Jupyter.display');
  const HOOK = 'microvm.hook'; // how text that is evaluated gets at a function of ours
  const FORMS = {
    'text/html': 'html',
    'text/markdown': 'markdown',
    'image/svg+xml': 'svg',
    'image/png': 'png',
    'image/jpeg': 'jpeg',
    'application/pdf': 'pdf',
    'text/latex': 'latex',
    'application/json': 'json',
    'application/javascript': 'javascript',
  };

  // Kept from what the code may do to them.
  const { stringify, parse } = JSON;
  const defer = setImmediate;
  const { writeSync } = fs;
  const { wait } = Atomics;
  const never = new Int32Array(new SharedArrayBuffer(4));

  // Writes all of it. Nothing is remembered from one call to the next, so an interrupt may end it anywhere: the streams that Node
  // makes wait for ever for the end of a write that an interrupt has ended.
  function put(descriptor, data) {
    for (let done = 0; done < data.length; ) {
      try {
        done += writeSync(descriptor, data, done);
      } catch (problem) {
        if (problem.code !== 'EAGAIN') {
          throw problem;
        }
        // Another program has made the pipe that it shares with us non-blocking, and it is full.
        wait(never, 0, 0, 1);
      }
    }
  }

  function output(name, descriptor) {
    const made = new stream.Writable();
    made.fd = descriptor;
    made.write = (data, encoding, done) => {
      if (typeof encoding === 'function') {
        [encoding, done] = [undefined, encoding];
      }
      if (typeof data !== 'string' && !ArrayBuffer.isView(data)) {
        throw new TypeError('what is written must be a string, a Buffer, a TypedArray or a DataView');
      }
      const text = typeof data === 'string';
      put(descriptor, text ? Buffer.from(data, encoding) : Buffer.from(data.buffer, data.byteOffset, data.byteLength));
      if (typeof done === 'function') {
        process.nextTick(done);
      }
      return true;
    };
    made.end = (data, encoding, done) => {
      if (data !== undefined && data !== null && typeof data !== 'function') {
        made.write(data, encoding);
      }
      const last = [data, encoding, done].find((value) => typeof value === 'function');
      if (last !== undefined) {
        process.nextTick(last);
      }
      return made;
    };
    made.destroy = () => made;
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => made });
    return (text) => put(descriptor, Buffer.from(text));
  }

  const out = output('stdout', 1);
  const err = output('stderr', 2);

  const session = new inspector.Session();
  session.connect();

  const waiting = []; // requests that came while code runs
  let loaded = null; // a request that waits for its `run`: an interrupt cancels it
  let late = false; // one came before its code ran
  let give_up = null; // ends the wait for the code that runs
  let count = 0;
  let current = null; // the id of the request that runs
  const runs = new AsyncLocalStorage(); // `{ given_up, told }` of the execution that code belongs to

  // Node notes on each promise what it belongs to, and shows its notes with it: they are none of the code's.
  const NOTES = ['async_id_symbol', 'trigger_async_id_symbol', 'kResourceStore'];
  Object.defineProperty(Promise.prototype, util.inspect.custom, {
    configurable: true,
    writable: true,
    value() {
      for (const note of Object.getOwnPropertySymbols(this)) {
        if (NOTES.includes(note.description)) {
          attempt(() => Object.defineProperty(this, note, { enumerable: false }));
        }
      }
      return this;
    },
  });

  for (const made of [process.stdout, process.stderr]) {
    const write = made.write;
    made.write = function (...words) {
      const run = runs.getStore();
      if (!run?.given_up) {
        return write.apply(this, words);
      }
      if (!run.told) {
        run.told = true;
        err('[what code writes that was interrupted and goes on is left out]\n');
      }
      const done = words.at(-1);
      if (typeof done === 'function') {
        defer(done);
      }
      return true;
    };
  }
  world.display = (...values) => {
    // There is nobody to show it to.
    if (current === null || runs.getStore()?.given_up) {
      return;
    }
    values.forEach((value) => tell(out, current, 'result', { is_main_result: false, ...represent(value) }));
  };

  const well_formed = (_key, value) =>
    typeof value === 'string' ? value.replace(/[\ud800-\udfff]/gu, '\ufffd') : value;

  function tell(write, id, type, fields) {
    write(`\0microvm-context ${id} ${stringify({ id, type, ...fields }, well_formed)}\0`);
  }

  function cut(text, most) {
    return text.length > most ? `${text.slice(0, most)}\u2026 (${text.length} characters in all)` : text;
  }

  // Calls a function of the code's (a getter, a form of its own) so that it cannot fail us.
  function attempt(work, otherwise) {
    try {
      return work();
    } catch {
      return otherwise;
    }
  }

  const inspected = (value) => cut(attempt(() => util.inspect(value), 'a value that cannot be shown'), LONGEST_TEXT);

  // All forms of a value by name; those that are too long, or no JSON, are left out and named.
  function represent(value) {
    const found = { text: inspected(value) };
    const left_out = [];
    const own = value !== null && typeof value === 'object' && attempt(() => value[DISPLAY], undefined);
    const bundle = typeof own === 'function' ? attempt(() => own.call(value), {}) : {};
    let room = LONGEST_RESULT;
    for (const [mime, data] of Object.entries(bundle ?? {})) {
      if (mime === 'text/plain') {
        found.text = cut(String(data), LONGEST_TEXT);
        continue;
      }
      const json = mime === 'application/json' || !(mime in FORMS);
      const text = attempt(() => stringify(json ? data : String(data)), undefined);
      if (text === undefined || text.length * 4 > room) {
        left_out.push(mime);
        continue;
      }
      room -= text.length * 4;
      if (mime in FORMS) {
        found[FORMS[mime]] = parse(text);
      } else {
        (found.extra ??= {})[mime] = parse(text);
      }
    }
    if (left_out.length > 0) {
      (found.extra ??= {}).left_out = left_out;
    }
    return found;
  }

  // The frames of the code: those below it are the interpreter's.
  function frames_of(stack) {
    const lines = stack.split('\n');
    const end = lines.findIndex((line) => line.includes('Session.post (node:inspector'));
    return (end < 0 ? lines : lines.slice(0, end)).join('\n');
  }

  function fault_of(value) {
    if (!util.types.isNativeError(value)) {
      const text = cut(inspected(value), LONGEST_TRACE);
      return { name: 'Error', value: text, traceback: `Uncaught ${text}\n` };
    }
    const text = (work, otherwise) => cut(String(attempt(work, otherwise) ?? otherwise), LONGEST_TRACE);
    const name = text(() => String(value.name), 'Error');
    const message = text(() => String(value.message), '');
    let traceback = text(() => frames_of(String(value.stack)), `${name}: ${message}`);
    // Node 20 and newer, and Node 18.
    if (/^(A dynamic import callback was not specified|Invalid host defined options)/.test(message)) {
      traceback += '\nimport() is not possible here: take require(), or await importModule() for a module that has only exports';
    }
    return { name, value: message, traceback: `${traceback}\n` };
  }

  // The value that an answer of the inspector stands for.
  function value_of(remote) {
    if (remote.objectId === undefined) {
      return 'unserializableValue' in remote ? vm.runInThisContext(`(${remote.unserializableValue})`) : remote.value;
    }
    let found;
    world[HOOK] = (value) => (found = value);
    session.post('Runtime.callFunctionOn', {
      functionDeclaration: 'function (value) { (function () { return this })()["microvm.hook"](value) }',
      objectId: remote.objectId,
      arguments: [{ objectId: remote.objectId }],
    });
    delete world[HOOK];
    return found;
  }

  // Evaluates code; the promise gives `{ value }` (a value of the code's may be a promise itself, which is not waited for), or is rejected
  // with `{ fault }`.
  function evaluate(source, name) {
    return new Promise((resolve, reject) => {
      const run = { given_up: false, told: false };
      give_up = () => {
        run.given_up = true;
        reject({ fault: { name: 'Interrupted', value: '', traceback: 'Interrupted\n' } });
      };
      if (late) {
        give_up();
        return;
      }
      const work = () => {
        delete world[HOOK];
        const wish = { expression: `${source}\n//# sourceURL=${name}`, replMode: true, awaitPromise: true, objectGroup: 'code' };
        session.post('Runtime.evaluate', wish, (problem, answer) => {
          if (problem) {
            reject({ fault: { name: 'Error', value: problem.message, traceback: `${problem.message}\n` } });
          } else if (answer.exceptionDetails) {
            const { exception, text, lineNumber, columnNumber } = answer.exceptionDetails;
            const fault = exception ? fault_of(value_of(exception)) : { name: 'Error', value: text, traceback: `${text}\n` };
            if (fault.name === 'SyntaxError' && !fault.traceback.includes(name)) {
              const place = lineNumber < source.split('\n').length ? `line ${lineNumber + 1}, column ${columnNumber + 1}` : 'at the end';
              fault.traceback = `SyntaxError: ${fault.value} (${place})\n`;
            }
            reject({ fault });
          } else {
            resolve({ value: value_of(answer.result) });
          }
        });
      };
      world[HOOK] = work;
      try {
        runs.run(run, () => vm.runInThisContext('this["microvm.hook"]()', { breakOnSigint: true }));
      } catch {
        give_up();
      }
    });
  }

  // True for code that a reader of lines would go on reading.
  function is_incomplete(source) {
    const goes_on = (text) => {
      try {
        new vm.Script(text);
        return false;
      } catch ({ message }) {
        const open_call = /^missing \) after/.test(message) && !/[);]\s*$/.test(source);
        return open_call || /^(Unexpected end of input|Unterminated template literal)/.test(message);
      }
    };
    // `await` may stand in a function only; one that is not closed goes on in any case, so a closed one must be wrong.
    return goes_on(source) || (goes_on(`async () => {${source}`) && goes_on(`async () => {${source}\n}`));
  }

  async function serve(request) {
    const { id } = request;
    const end = () => {
      tell(err, id, 'end_of_execution');
      tell(out, id, 'end_of_execution');
    };
    if (request.interactive && is_incomplete(request.code)) {
      tell(out, id, 'incomplete');
      end();
      return;
    }
    count += 1;
    tell(err, id, 'number_of_executions', { execution_count: count });
    tell(out, id, 'number_of_executions', { execution_count: count });
    const before = Object.entries(request.env ?? {}).map(([key, value]) => {
      const old = process.env[key];
      process.env[key] = value;
      return [key, old];
    });
    current = id;
    try {
      const { value } = await evaluate(request.code, `code-${count}`);
      if (value !== undefined) {
        world._ = value;
        tell(out, id, 'result', { is_main_result: true, ...represent(value) });
      }
    } catch (problem) {
      tell(out, id, 'error', problem?.fault ?? fault_of(problem));
    } finally {
      give_up = null;
      late = false;
      current = null;
      attempt(() => session.post('Runtime.releaseObjectGroup', { objectGroup: 'code' }));
      for (const [key, old] of before) {
        if (old === undefined) {
          delete process.env[key];
        } else {
          process.env[key] = old;
        }
      }
    }
    end();
  }

  let running = false;
  async function take() {
    while (!running && waiting.length > 0) {
      const request = waiting.shift();
      if (typeof request.code === 'string') {
        loaded = request;
        late = false;
        tell(out, request.id, 'loaded');
      } else if (request.run === true && loaded !== null && loaded.id === request.id) {
        const code = loaded;
        loaded = null;
        running = true;
        try {
          await serve(code);
        } finally {
          running = false;
        }
      }
    }
  }

  process.on('SIGINT', () => {
    if (give_up !== null) {
      give_up();
    } else if (loaded !== null) {
      late = true;
    }
  });
  process.on('uncaughtException', (problem) => err(`Uncaught ${inspected(problem)}\n`));
  world.importModule = (name) => import(name);

  const requests = new net.Socket({ fd: 3, readable: true, writable: false });
  let pieces = [];
  requests.on('data', (data) => {
    for (let end; (end = data.indexOf(10)) >= 0; data = data.subarray(end + 1)) {
      const line = Buffer.concat([...pieces, data.subarray(0, end)]).toString();
      pieces = [];
      // The line of a request may have been cut off, or be the empty one before the next.
      const request = attempt(() => parse(line), null);
      if (request !== null && typeof request === 'object' && Number.isSafeInteger(request.id)) {
        waiting.push(request);
      }
    }
    pieces.push(data);
    defer(take);
  });
  requests.on('end', () => process.exit());
  tell(out, 0, 'ready');
})();
