# The interpreter of a context: reads requests as lines of JSON, answers with lines of JSON.
#
# `requests` is the standard input it was started with; the stub that runs this text has opened it. Programs that the code
# starts get /dev/null as theirs, and their output comes through the same pipes as that of `print`.
#
# A request comes in two lines: one with the code, which is answered `loaded`, and one with its id and `run`. Code that was
# given up before its second line never runs: the next request takes its place.
import ast
import base64
import builtins
import codecs
import codeop
import inspect
import json
import linecache
import os
import signal
import sys
import threading
import traceback
import types

LONGEST_TEXT = 32 << 10  # characters of output in one frame
LONGEST_REPR = 1 << 18  # characters of a result as text
LONGEST_RESULT = 6 << 20  # bytes of all forms of a result, as JSON
LONGEST_TRACE = 64 << 10  # characters of a traceback
FORMS = {
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
}
DEEPEST = 100  # lists and objects in each other in a form; the reader of the lines refuses 128
METHODS = {name: "_repr_%s_" % name for name in FORMS.values()}

process = os.getpid()
frames = os.dup(1)
null = os.open(os.devnull, os.O_RDONLY)
os.dup2(null, 0)
sys.stdin = os.fdopen(0, closefd=False)
writing = threading.Lock()


class State:
    request = None  # id of the request that runs, or ran last
    loaded = None  # a request that waits for its `run`: an interrupt cancels it
    running = False  # the code of the user's runs: it may be interrupted
    masked = 0  # a frame is being written: an interrupt waits
    late = False  # one waits
    count = 0
    loop = None


def interrupted(_number, _frame):
    if State.running and not State.masked:
        raise KeyboardInterrupt
    if State.running or State.loaded is not None:
        State.late = True


def as_json(value):
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def emit(kind, **fields):
    leave_if_forked()
    main = threading.current_thread() is threading.main_thread()
    if main:
        State.masked += 1
    try:
        line = as_json({"id": State.request, "type": kind, **fields}) + b"\n"
        with writing:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(frames, rest):]
    finally:
        if main:
            State.masked -= 1
            if State.late and State.running and not State.masked:
                State.late = False
                raise KeyboardInterrupt


class Stream(threading.Thread):
    """One output: a pipe in place of a descriptor, and a thread that reads it."""

    def __init__(self, kind, descriptor):
        super().__init__(daemon=True)
        self.kind = kind
        self.reader, self.writer = os.pipe()
        os.dup2(self.writer, descriptor)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.mark = None
        self.met = threading.Event()
        self.start()

    def run(self):
        held = b""
        while data := os.read(self.reader, 1 << 16):
            held += data
            mark = self.mark
            if mark is None:
                self.tell(held)
                held = b""
            elif mark in held:
                before, held = held.split(mark, 1)
                self.tell(before)
                self.mark = None
                self.met.set()
                self.tell(held)
                held = b""

    def tell(self, data):
        text = self.decoder.decode(data)
        for start in range(0, len(text), LONGEST_TEXT):
            emit(self.kind, text=text[start:start + LONGEST_TEXT])

    def drain(self):
        """Waits until all that was written so far was told."""
        self.met.clear()
        mark = b"\0" + base64.b32encode(os.urandom(15)) + b"\0"
        self.mark = mark
        rest = memoryview(mark)
        while rest:
            rest = rest[os.write(self.writer, rest):]
        self.met.wait()


def drain():
    leave_if_forked()  # the threads that read the outputs are the parent's
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    for stream in streams:
        stream.drain()


def cut(value, most):
    if isinstance(value, str) and len(value) > most:
        return value[:most] + "… (%d characters in all)" % len(value)
    return value


def encoded(form, value):
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    if form == "json":
        return json.loads(json.dumps(value, default=repr))
    return str(value)


def check(value):
    """Raises ValueError for what is no JSON that every reader takes."""
    level = [value]
    for _ in range(DEEPEST):
        further = []
        for one in level:
            if isinstance(one, dict):
                further.extend(one.values())
            elif isinstance(one, list):
                further.extend(one)
            elif isinstance(one, int) and one.bit_length() > 1000:
                raise ValueError("a number is too large")
        if not further:
            as_json(value)
            return
        level = further
    raise ValueError("deeper than %d" % DEEPEST)


def represent(value):
    """All forms of a value by name; those that are too long, or no JSON, are left out and named."""
    found, left_out = {}, []

    def keep(forms, name, form, data):
        try:
            data = encoded(form, data)
            if form == "json":
                check(data)
            forms[name] = data
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            left_out.append("%s (%s)" % (name, cut(str(error), 200)))

    bundle = getattr(value, "_repr_mimebundle_", None)
    if callable(bundle) and not inspect.isclass(value):
        bundle = bundle(include=None, exclude=None)
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle
        for mime, data in (bundle or {}).items():
            if mime in FORMS and data is not None:
                keep(found, FORMS[mime], FORMS[mime], data)
            elif mime == "text/plain":
                found["text"] = str(data)
            elif data is not None:
                keep(found.setdefault("extra", {}), str(mime), "json", data)
    for name, method in METHODS.items():
        method = None if inspect.isclass(value) else getattr(value, method, None)
        if name not in found and callable(method):
            data = method()
            data = data[0] if isinstance(data, tuple) else data
            if data is not None:
                keep(found, name, name, data)
    if "text" not in found:
        found["text"] = repr(value)
    found["text"] = cut(found["text"], LONGEST_REPR)
    room = LONGEST_RESULT
    for name in sorted(found, key=lambda name: name != "text"):
        length = len(as_json(found[name]))
        room -= length
        if room < 0:
            del found[name]
            room += length
            left_out.append("%s (%d bytes)" % (name, length))
    if left_out:
        found.setdefault("extra", {})["left_out"] = left_out
    return found


def show(value, main):
    forms = represent(value)
    drain()
    emit("result", is_main_result=main, **forms)


def display(*values):
    """Shows values in all their forms, as the last expression of the code is shown."""
    for value in values:
        show(value, False)


def show_figures():
    plots = sys.modules.get("matplotlib.pyplot")
    if plots is None:
        return
    import io

    for number in plots.get_fignums():
        data, figure = io.BytesIO(), plots.figure(number)
        figure.savefig(data, format="png", bbox_inches="tight")
        text = "<Figure size %gx%g with %d Axes>" % (*figure.get_size_inches() * figure.dpi, len(figure.axes))
        plots.close(figure)
        drain()
        emit("result", is_main_result=False, png=encoded("png", data.getvalue()), text=text)


def run_part(part, name):
    code = compile(part, name, "exec" if isinstance(part, ast.Module) else "eval",
                   flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    value = eval(code, module.__dict__)
    if code.co_flags & inspect.CO_COROUTINE:
        if State.loop is None:
            import asyncio

            State.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(State.loop)
        task = State.loop.create_task(value)
        try:
            value = State.loop.run_until_complete(task)
        except BaseException:
            # One that was interrupted would go on with the next code that awaits.
            task.cancel()
            raise
    return value


def run(source, name):
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    if tree.body:
        run_part(tree, name)
    if last is not None:
        value = run_part(ast.Expression(last.value), name)
        if value is not None:
            module.__dict__["_"] = value
            show(value, True)
    show_figures()


def tell_error(error):
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<code "):
        trace = trace.tb_next
    told = traceback.TracebackException(type(error), error, trace)
    told.stack = traceback.StackSummary.from_list([one for one in told.stack if one.filename != "<kernel>"])
    text = "".join(told.format())
    if len(text) > LONGEST_TRACE:
        text = text[:LONGEST_TRACE // 2] + "\n…\n" + text[-LONGEST_TRACE // 2:]
    emit("error", name=type(error).__name__, value=cut(str(error), LONGEST_TRACE), traceback=text)


def is_incomplete(source):
    try:
        return codeop.compile_command(source, "<code>", "single") is None
    except (SyntaxError, ValueError, OverflowError):
        return False


def leave_if_forked():
    """Ends a child of a fork that comes out of the code: requests are for its parent."""
    if os.getpid() != process:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)


def serve(request):
    State.request = request["id"]
    source = request["code"]
    if request.get("interactive") and is_incomplete(source):
        State.loaded = None
        emit("incomplete")
        emit("end_of_execution")
        return
    State.count += 1
    name = "<code %d>" % State.count
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    emit("number_of_executions", execution_count=State.count)
    before = {key: os.environ.get(key) for key in request.get("env") or {}}
    os.environ.update(request.get("env") or {})
    try:
        try:
            State.running = True
            State.loaded = None
            if State.late:
                raise KeyboardInterrupt
            run(source, name)
        finally:
            State.running = False
            State.late = False
    except BaseException as error:
        leave_if_forked()
        drain()
        try:
            tell_error(error)
        except Exception as second:
            emit("error", name=type(error).__name__, value="", traceback="it cannot be shown: %r" % type(second))
    leave_if_forked()
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
    drain()
    emit("end_of_execution")


signal.signal(signal.SIGINT, interrupted)
streams = [Stream("stdout", 1), Stream("stderr", 2)]
sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
os.environ.setdefault("MPLBACKEND", "agg")
module = types.ModuleType("__main__")
module.__dict__["__builtins__"] = builtins
sys.modules["__main__"] = module
builtins.display = display
sys.argv = [""]
emit("ready", cwd=os.getcwd())
while line := requests.readline():
    try:
        request = json.loads(line)
        number = request["id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        continue  # the line of a request was cut off, or is the empty one before the next
    if "code" in request:
        State.late = False
        State.loaded = request
        emit("loaded", id=number)
    elif "run" in request and State.loaded is not None and State.loaded["id"] == number:
        try:
            serve(State.loaded)
        except KeyboardInterrupt:
            pass
