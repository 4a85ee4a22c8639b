# frozen_string_literal: true

# What needs no guest: loading, options, errors, handles, signals, threads, fibers, fork.

require_relative "helper"
require "async"
require "timeout"

class NativeTest < Minitest::Test
  include Supermachine

  def test_every_call_of_the_library_is_offered
    listed = File.read("#{ROOT}/docs/abi.md").scan(/^### sm_(\w+)/).flatten
    source = Dir["#{ROOT}/bindings/ruby/lib/**/*.rb"].map { |f| File.read(f) }.join
    used = source.scan(/(?:call|quick|done)\(\s*"(\w+)"/).flatten + source.scan(/KIND = "(\w+)"/).flatten.map { |k| "#{k}_close" }
    assert_equal listed.sort, used.uniq.sort
    assert_match(/no sm_nothing; install a newer one/, assert_raises(Supermachine::Error) { Native.call("nothing") }.message)
  end

  def test_errors_name_what_is_wrong
    e = assert_raises(InvalidArgumentError) { Image.from_oci("oci:/nowhere", memory_mib: "x") }
    assert_match(/memory_mib: an integer is needed, and a string was given/, e.message)
    assert_equal [2, "invalid_argument", "read the options of"], [e.code, e.name, e.op]
    assert_kind_of Supermachine::Error, e
    e = assert_raises(InvalidArgumentError) { Image.from_oci("oci:/nowhere", memori_mib: 5) }
    assert_match(/unknown option "memori_mib"; the nearest one is "memory_mib"/, e.message)
    assert_raises(ImageNotFoundError) { Image.from_oci("oci:/nowhere") }
    e = assert_raises(TypeError) { Supermachine.run("busybox", "echo hi") }
    assert_includes e.message, '["sh", "-c", command]'
    assert_raises(ArgumentError) { Image.from_oci("oci:/nowhere", timeout: -1) }
    assert_raises(InvalidArgumentError) { Store.open(5) }
    assert_raises(ArgumentError) { Supermachine.trace }
  end

  def test_closed_objects
    Dir.mktmpdir do |dir|
      store = Store.open(dir)
      assert_equal [[], [], false], [store.images, store.snapshots, store.closed?]
      2.times { store.close }
      assert_predicate store, :closed?
      assert_raises(InvalidHandleError) { store.images }
      assert_raises(InvalidHandleError) { Image.from_snapshot("nothing", store: store) } # and not found in the user's own store
      given = Store.open(dir) do |s|
        assert_raises(NotFoundError) { Image.from_snapshot("nothing", store: s) }
        s
      end
      assert_predicate given, :closed?
    end
  end

  # The library reads the options first: what it knows all of gets as far as the handle.
  def test_every_method_of_a_closed_vm_says_that_it_is_closed
    vm = closed(VM, :vm, 3)
    program = { env: { "A" => "b" }, workdir: "/", user: "0", timeout: 1.5, limits: { nofile: 1024, "as" => [1 << 30, "unlimited"] } }
    copying = { owners: true, owner: "0", setuid: true, special: true, skip_special: true }
    [
      -> { vm.run(["x"], **program, stdin: "x", max_output: 5) },
      -> { vm.exec(["x"], **program, stdin: true, stderr: true, tty: true, rows: 5, cols: 5) },
      -> { vm.spawn(["x"], **program, stdin: true, tty: true, rows: 5, cols: 5) },
      -> { vm.attach(5, stdin: true, stderr: true) },
      -> { vm.programs },
      -> { vm.chain([["x"], { args: ["x"], **program }, { "args" => ["x"], "timeout" => 1 }], files: { "/x" => "x" }, timeout: 1.5, max_output: 5) },
      -> { vm.chain([["x"]], files: [{ path: "/x", data: "x", mode: 0o600, owner: "0" }, { "path" => "/x" }], continue_on_error: true) },
      -> { vm.start_workload(["x"], **program) },
      -> { vm.read_file("/x", offset: 5, length: 5, max_bytes: 5) },
      -> { vm.write_file("/x", "x", mode: 0o600, owner: "0", append: true) },
      -> { vm.write_file("/x", "x", offset: 0) },
      -> { vm.open_file("/x", offset: 5, length: 5) {} },
      -> { vm.create_file("/x", mode: 0o600, owner: "0", offset: 5) {} },
      -> { vm.stat("/x", follow: false) },
      -> { vm.list("/x").first },
      -> { vm.walk("/x", depth: 5, one_file_system: true) {} },
      -> { vm.watch("/x", recursive: true) {} },
      -> { vm.mkdir("/x", mode: 0o700, parents: true, owner: "0") },
      -> { vm.remove("/x", recursive: true) },
      -> { vm.rename("/x", "/y", replace: false) },
      -> { vm.chmod("/x", 0o600, recursive: true) },
      -> { vm.chown("/x", "0", recursive: true, follow: false) },
      -> { vm.symlink("/y", "/x") },
      -> { vm.pack("/x", one_file_system: true) {} },
      -> { vm.unpack("/x", **copying) {} },
      -> { vm.copy_in("/x", "/y", **copying) },
      -> { vm.copy_out("/x", "/y", **copying.slice(:owners, :setuid, :skip_special), one_file_system: true, max_bytes: 5, max_entries: 5) },
      -> { vm.connect },
      -> { vm.forward(address: "127.0.0.1:0") },
      -> { vm.forward_to_host("127.0.0.1:5", port: 5) },
      -> { vm.socket_path },
      -> { vm.stats },
      -> { vm.follow_console {} },
      -> { closed(Process, :exec, 4, stdin: -1, stdout: -1, stderr: -1).detach },
      -> { closed(Forward, :forward, 5).stats },
      -> { closed(Entries, :entries, 7).each {} },
      -> { closed(Watch, :watch, 8).first },
      -> do
        closed(Image, :image, 2).start(
          name: "x", timeout: 5, volumes: ["/x:/x:size=1G"], mounts: ["/x:/y:ro"], network: true, egress: ["deny *"], egress_default: "deny", network_rate: 5,
          disk_rate: 5, disk_ops: 5, cpu_percent: 50, cgroup: "/c", lifetime: 5, idle_timeout: 0.5
        )
      end
    ].each_with_index { |method, i| assert_raises(InvalidHandleError, "number #{i}", &method) }
  end

  def test_options_of_vms_say_what_is_wrong
    vm = closed(VM, :vm, 3)
    assert_match(/limits/, assert_raises(InvalidArgumentError) { vm.run(["x"], limits: 5) }.message)
    assert_match(/element 0: a string is needed/, assert_raises(InvalidArgumentError) { closed(Image, :image, 2).start(mounts: [5]) }.message)
    assert_match(/nearest one is "volumes"/, assert_raises(InvalidArgumentError) { VM.boot("oci:/nowhere", volume: []) }.message)
    assert_match(/unknown option "arg"/, assert_raises(InvalidArgumentError) { vm.chain([{ args: ["x"], arg: 5 }]) }.message)
    assert_raises(ArgumentError) { closed(Image, :image, 2).start(lifetime: -1) }
    assert_raises(TypeError) { vm.chain(["echo hi"]) }
    assert_raises(TypeError) { vm.chain("echo hi") }
    assert_raises(TypeError) { vm.spawn("echo hi") }
    assert_match(/categories/, assert_raises(InvalidArgumentError) { Supermachine.trace(categories: 5) {} }.message)
  end

  def test_what_is_forgotten_is_closed_with_a_warning
    status, out, err = ruby(<<~'RUBY')
      require "supermachine"; require "tmpdir"
      dir = Dir.mktmpdir
      handles = Array.new(50) { Supermachine::Store.open(dir).handle }
      GC.start
      closed = handles.count { |h| Supermachine::Native.call("store_images", h) && false rescue true }
      puts closed > 40
      $kept = Supermachine::Store.open(dir)
    RUBY
    assert_equal [0, "true\n"], [status.exitstatus, out], err
    assert_match(/a Supermachine::Store was garbage-collected without having been closed/, ruby(<<~'RUBY').last)
      $VERBOSE = false; require "supermachine"
      50.times { Supermachine::Store.open }
      GC.start
    RUBY
  end

  def test_a_library_that_is_not_there_or_none_or_too_old
    Dir.mktmpdir do |dir|
      load = ->(name) { ruby('require "supermachine"', SUPERMACHINE_LIBRARY: File.join(dir, name)).last }
      assert_match(/SUPERMACHINE_LIBRARY/, load.call("none.so"))
      File.write("#{dir}/text.so", "no library")
      assert_match(/cannot be loaded/, load.call("text.so"))
      { "other" => "int x;", "old" => "int sm_abi_version(void) { return 0; }" }.each do |name, text|
        File.write("#{dir}/#{name}.c", text)
        assert system("gcc", "-shared", "-fPIC", "-o", "#{dir}/#{name}.so", "#{dir}/#{name}.c")
      end
      assert_match(/is not libsupermachine/, load.call("other.so"))
      assert_match(/version 0 of the ABI, and this gem needs 1/, load.call("old.so"))
    end
  end

  def test_musl_is_told_before_the_library_is_loaded
    err = ruby('Object.send(:remove_const, :RUBY_PLATFORM); RUBY_PLATFORM = "x86_64-linux-musl"; require "supermachine"', SUPERMACHINE_LIBRARY: "/nowhere").last
    assert_match(/musl.*Alpine/, err)
    refute_includes err, "/nowhere"
  end

  def test_signals_are_as_they_were
    status, out, err = ruby(<<~'RUBY')
      names = Signal.list.keys - %w[EXIT KILL STOP SEGV BUS FPE ILL VTALRM]
      state = -> { File.read("/proc/self/status").scan(/Sig(?:Ign|Blk):.*/) }
      trap("QUIT") { puts "quit" }
      trap("HUP", "IGNORE")
      before = state.call
      require "supermachine"
      Supermachine.version
      puts before == state.call
      %w[USR1 USR2 WINCH TERM].each do |s|
        trap(s) { puts s }
        Process.kill(s, $$)
        sleep 0.05
      end
      Process.kill("QUIT", $$); sleep 0.05
      Process.kill("HUP", $$)
      a, b = UNIXSocket.pair
      b.close
      begin; a.write("x"); rescue Errno::EPIPE; puts "EPIPE"; end
      begin; Process.kill("INT", $$); sleep 5; rescue Interrupt; puts "Interrupt"; end
    RUBY
    assert_equal [0, "true\nUSR1\nUSR2\nWINCH\nTERM\nquit\nEPIPE\nInterrupt\n"], [status.exitstatus, out], err
  end

  def test_handlers_of_sigchld_have_a_stack_of_their_own
    Dir.mktmpdir do |dir|
      File.write("#{dir}/probe.c", <<~'C')
        #include <signal.h>
        int onstack(void) {
          struct sigaction a;
          sigaction(SIGCHLD, 0, &a);
          return a.sa_handler == SIG_DFL || (a.sa_flags & SA_ONSTACK) != 0;
        }
      C
      assert system("gcc", "-shared", "-fPIC", "-o", "#{dir}/probe.so", "#{dir}/probe.c")
      probe = FFI::Function.new(:int, [], FFI::DynamicLibrary.open("#{dir}/probe.so", FFI::DynamicLibrary::RTLD_NOW).find_function("onstack"))
      assert_equal 1, probe.call
      ways = [-> { trap("CHLD") {} }, -> { Signal.trap("CHLD") {} }, -> { Kernel.trap("CHLD") {} }, -> { Object.new.instance_eval { trap("CHLD") {} } }]
      before = ways.first.call
      ways.each do |way|
        way.call
        assert_equal 1, probe.call
      end
      trap("CHLD", before || "DEFAULT")
      assert_equal 1, probe.call
    end
  end

  def test_ctrl_c_ends_a_call_that_waits
    main = Thread.current
    Thread.new { sleep 0.2; ::Process.kill("INT", $$) } # rubocop:disable all
    assert_raises(Interrupt) { Supermachine.trace {} }
    assert_same main, Thread.current
    assert_operator Supermachine.version[:abi], :>=, 1
  end

  def test_handlers_run_while_a_call_waits_and_may_make_calls
    seen = []
    before = trap("USR1") { seen << Supermachine.doctor[:checks].size }
    stop = false
    storm = Thread.new { until stop do ::Process.kill("USR1", $$); sleep 0.002 end }
    assert_raises(Timeout::Error) { Timeout.timeout(1) { Supermachine.trace {} } }
    stop = true
    storm.join
    trap("USR1", before || "DEFAULT")
    assert_operator seen.size, :>, 5
  end

  def test_calls_that_are_given_up_leave_nothing
    Supermachine.doctor
    before = fds
    50.times { |i| assert_raises(Timeout::Error) { Timeout.timeout(0.001 * (1 + i % 5)) { Supermachine.trace {} } } }
    threads = Array.new(20) { Thread.new { Supermachine.trace {} } }
    sleep 0.05
    threads.each(&:kill).each(&:join)
    Store.open { |s| assert_kind_of Array, s.images }
    assert_operator fds, :<=, before + 32 # queues that wait for the next call
  end

  def test_threads
    Dir.mktmpdir do |dir|
      threads = Array.new(16) { Thread.new { 50.times { Store.open(dir) { |s| s.images } } } }
      ticks = 0
      ticker = Thread.new { loop { ticks += 1; sleep 0.001 } }
      threads.each(&:join)
      ticker.kill
      assert_operator ticks, :>, 5
    end
  end

  def test_fibers_take_turns
    order = []
    Async do |task|
      waiting = task.async { Supermachine.trace {} }
      others = Array.new(20) { |i| task.async { order << [i, Supermachine.doctor[:checks].size > 0] } }
      others.each(&:wait)
      waiting.stop
    end
    assert_equal 20, order.size
    assert(order.all?(&:last))
  end

  def test_forked_children_are_told
    store = Store.open
    pid = fork do
      Supermachine.version
    rescue ForkedError
      store.close # the parent's: does nothing
      exit!(0)
    ensure
      exit!(1)
    end
    assert_equal 0, ::Process.wait2(pid).last.exitstatus
    assert system("true")
    store.images
    store.close
  end

  private

  # An object that the library has not given out, with the number of its kind.
  def closed(type, name, kind, **others)
    object = type.new({ name => kind << 56 | 1, **others })
    object.send(:mark_closed)
    object
  end
end
