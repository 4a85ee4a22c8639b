# frozen_string_literal: true

# What needs guests: programs, streams, files, connections, pools, snapshots, and the host program's own life beside them.

require_relative "helper"
require "async"
require "digest"
require "pathname"
require "securerandom"
require "timeout"

IMAGES = ENV.fetch("SUPERMACHINE_TEST_IMAGES") { abort "needs guests: run it by make test" }
REF = "oci:#{IMAGES}/busybox:latest"
steps = []
IMAGE = Supermachine::Image.from_oci(REF, boot_only: true, memory_mib: 96, progress: ->(e) { steps << e[:event] })
abort "no progress: #{steps}" unless (%w[resolved done step] - steps).empty?
Minitest.after_run { IMAGE.close }

class GuestsTest < Minitest::Test # rubocop:disable Metrics/ClassLength
  include Supermachine

  MIB = 1 << 20

  def with_vm(&block) = IMAGE.start(&block)

  def test_run
    with_vm do |vm|
      r = vm.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
      assert_equal ["out\n", "err\n", 3, 0, false, false], [r.stdout, r.stderr, r.code, r.signal, r.timed_out, r.success?]
      assert_operator r.duration, :>, 0
      assert_operator r.max_rss, :>, 0
      assert_equal "\xff\0x".b, vm.run(["cat"], stdin: "\xff\0x".b).stdout
      assert_equal "zażółć", vm.run(["printf", "%s", "zażółć"]).text
      assert_equal "\xff".b, vm.run(["printf", "%s", "\xff".b]).stdout
      assert_equal "b /tmp 65534\n", vm.run(["sh", "-c", "echo $A $PWD $(id -u)"], env: { "A" => "b" }, workdir: Pathname("/tmp"), user: "65534").text
      assert_equal "", vm.run(["true"]).stdout
      r = vm.run(["sleep", "100"], timeout: 0.1)
      assert r.timed_out
      assert_equal Signal.list["KILL"], r.signal
      e = assert_raises(ExitError) { vm.run(["sh", "-c", "echo oh no >&2; exit 4"], check: true) }
      assert_equal ["sh exited with 4: oh no", 4], [e.message, e.result.code]
      assert_equal "64 128\n", vm.run(["sh", "-c", "echo $(ulimit -n) $(ulimit -Hn)"], limits: { nofile: [64, 128] }).text
      assert_equal "70\n", vm.run(["sh", "-c", "ulimit -n"], limits: ["nofile=70:unlimited"]).text
      r = vm.run(["sh", "-c", "echo 123456789; echo x >&2"], max_output: 4)
      assert_equal ["1234", 10, true], [r.stdout, r.stdout_bytes, r.stdout_truncated]
      assert_equal ["x\n", 2, false], [r.stderr, r.stderr_bytes, r.stderr_truncated]
    end
  end

  def test_programs_that_run_by_themselves
    with_vm do |vm|
      by_itself = vm.spawn(["sh", "-c", "echo $A; read x; echo got $x; exit 3"], stdin: true, env: { "A" => "b" })
      listed = vm.programs.find { |p| p[:id] == by_itself.id }
      assert_equal [by_itself.pid, "sh", true, false, false], [*listed.values_at(:pid), listed[:args][0], *listed.values_at(:detached, :ended, :workload)]
      vm.attach(by_itself.id, stdin: true) do |p|
        assert_equal "b\n", p.stdout.gets
        p.stdin.write("it\n")
        assert_equal ["got it\n"], p.to_a
        assert_equal [by_itself.id, by_itself.pid, 3], [p.id, p.pid, p.wait.code]
      end
      assert_raises(NotFoundError) { vm.attach(by_itself.id) }
      id = vm.exec(["sh", "-c", "echo one; read x; sleep 1000"]) do |p|
        assert_equal "one\n", p.first
        p.detach
        assert_nil p.stdout.gets
        assert_raises(Supermachine::Error) { p.wait }
        p.id
      end
      assert(vm.programs.any? { |p| p[:id] == id && p[:detached] && !p[:ended] })
      vm.attach(id) { |p| p.detach }
      vm.attach(id, stderr: true) do |p|
        p.kill
        assert_equal Signal.list["KILL"], p.wait.signal
      end
      refute(vm.programs.any? { |p| p[:id] == id })
    end
  end

  def test_chains
    with_vm do |vm|
      commands = [["cat", "/tmp/a"], { args: ["sh", "-c", "echo $A; exit 4"], env: { "A" => "b" }, timeout: 60 }, ["pwd"]]
      done = vm.chain(commands, files: { "/tmp/a" => "text" })
      assert_equal [["text", "b\n"], 1, nil, false], [done.outputs.map(&:text), done.failed, done.error, done.success?]
      done = vm.chain(commands, continue_on_error: true, max_output: 3, timeout: 60)
      assert_equal [%W[tex b\n /\n], 1, [4, true]], [done.outputs.map(&:text), done.failed, [done.outputs[0].stdout_bytes, done.outputs[0].stdout_truncated]]
      done = vm.chain([{ "args" => ["stat", "-c", "%a %u", "/tmp/b"] }], files: [{ path: "/tmp/b", data: "x", mode: 0o600, owner: "65534" }])
      assert_equal ["600 65534\n", nil, true], [done.outputs[0].text, done.failed, done.success?]
      done = vm.chain([["true"], ["nothing"]])
      assert_equal [1, false], [done.failed, done.success?]
      assert_match(/nothing/, done.error)
      assert_raises(NotFoundError) { vm.chain([["true"]], files: { "/no/such/file" => "x" }) }
    end
  end

  def test_errors
    with_vm do |vm|
      assert_raises(CommandNotFoundError) { vm.run(["nothing"]) }
      assert_raises(NotExecutableError) { vm.run(["/etc/passwd"]) }
      assert_raises(InvalidArgumentError) { vm.run([]) }
      assert_raises(NotFoundError) { vm.read_file("/nothing") }
      assert_raises(RefusedError) { vm.connect(81) }
      assert_match(/exposes none/, assert_raises(RefusedError) { vm.connect }.message)
      assert_raises(InvalidArgumentError) { vm.fork(5000) }
    end
  end

  def test_streams
    with_vm do |vm|
      vm.exec(["sh", "-c", "for i in 1 2 3; do echo line $i; done"]) do |p|
        assert_equal ["line 1\n", "line 2\n", "line 3\n"], p.to_a
        assert_equal 0, p.wait.code
        assert_operator p.pid, :>, 0
      end
      block = SecureRandom.random_bytes(MIB)
      vm.exec(["cat"], stdin: true) do |p|
        writer = Thread.new do
          16.times { p.stdin.write(block) }
          p.stdin.close_write
        end
        got = Digest::SHA256.new
        while (data = p.stdout.read(MIB)) do got << data end
        writer.join
        assert_equal Digest::SHA256.hexdigest(block * 16), got.hexdigest
      end
      vm.exec(["sh", "-c", "echo a; echo b >&2"], stderr: true) { |p| assert_equal ["a\n", "b\n"], [p.stdout.read, p.stderr.read] }
      vm.exec(["sleep", "100"]) do |p|
        p.kill(:TERM)
        assert_equal Signal.list["TERM"], p.wait.signal
      end
      vm.exec(["sh", "-c", "stty size; read x; stty size"], stdin: true, tty: true, rows: 10, cols: 20) do |p|
        assert_equal %w[10 20], p.first.split
        p.resize(30, 40)
        p.stdin.write("\n")
        assert_equal %w[30 40], p.stdout.read.split.last(2)
      end
      ended = vm.exec(["sleep", "1000"]) { |p| p }
      assert_raises(InvalidHandleError) { ended.wait }
    end
  end

  def test_files
    Dir.mktmpdir do |dir|
      with_vm do |vm|
        vm.write_file("/tmp/a", "text", mode: 0o600)
        assert_equal "text", vm.read_file("/tmp/a")
        assert_equal "600\n", vm.run(["stat", "-c", "%a", "/tmp/a"]).text
        vm.write_file("/tmp/empty", "")
        assert_equal "", vm.read_file("/tmp/empty")
        vm.create_file("/tmp/a") { |io| io.write("new") }
        assert_equal "new", vm.open_file("/tmp/a", &:read)
        assert_raises(RuntimeError) { vm.create_file("/tmp/a") { |io| io.write("half of it"); raise } }
        assert_equal "new", vm.read_file("/tmp/a")
        big = SecureRandom.random_bytes(3 * MIB)
        File.binwrite("#{dir}/big", big)
        File.chmod(0o751, "#{dir}/big")
        vm.upload("#{dir}/big", "/tmp/big")
        assert_equal "751\n", vm.run(["stat", "-c", "%a", "/tmp/big"]).text
        vm.download("/tmp/big", "#{dir}/back")
        assert_equal big, File.binread("#{dir}/back")
        assert_raises(LimitError) { vm.read_file("/tmp/big", max_bytes: 1000) }
        assert_raises(NotFoundError) { vm.download("/nothing", "#{dir}/none") }
        vm.write_file("/tmp/parts", "0123456789", owner: "65534:65534")
        assert_equal "345", vm.read_file("/tmp/parts", offset: 3, length: 3)
        assert_equal "789", vm.open_file("/tmp/parts", offset: 7, length: 9, &:read)
        vm.write_file("/tmp/parts", "ab", offset: 0)
        vm.create_file("/tmp/parts", offset: 4) { |io| io.write("cd") }
        vm.write_file("/tmp/parts", "ef", append: true)
        assert_equal ["ab23cd6789ef", 65_534], [vm.read_file("/tmp/parts"), vm.stat("/tmp/parts").uid]
      end
    end
  end

  def test_names_of_files
    with_vm do |vm|
      vm.mkdir("/tmp/a/b", mode: 0o2750, parents: true, owner: "7:8")
      vm.write_file(Pathname("/tmp/a/b/file"), "text", mode: 0o640)
      vm.symlink("b/file", "/tmp/a/link")
      info = vm.stat("/tmp/a/link")
      assert_equal ["/tmp/a/link", "file", 4, 0o640, 0, 8, nil, 1, nil], info.to_h.values_at(:path, :type, :size, :mode, :uid, :gid, :target, :links, :error)
      assert_in_delta Time.now, info.mtime, 3600
      info = vm.stat("/tmp/a/link", follow: false)
      assert_equal ["symlink", "b/file", true, false], [info.type, info.target, info.symlink?, info.file?]
      info = vm.stat("/tmp/a/b")
      assert_equal [true, 0o2750, 7, 8], [info.directory?, info.mode, info.uid, info.gid]
      vm.chown("/tmp/a", "9", recursive: true)
      vm.chown("/tmp/a/link", ":10", follow: false)
      vm.chmod("/tmp/a", 0o700, recursive: true)
      assert_equal [9, 8, 0o700], vm.stat("/tmp/a/b/file").to_h.values_at(:uid, :gid, :mode)
      assert_equal 10, vm.stat("/tmp/a/link", follow: false).gid
      assert_raises(ExistsError) { vm.rename("/tmp/a/link", "/tmp/a/b/file", replace: false) }
      assert_raises(NotEmptyError) { vm.remove("/tmp/a") }
      vm.rename("/tmp/a/b/file", "/tmp/a/link")
      assert_equal "text", vm.read_file("/tmp/a/link")
      vm.remove("/tmp/a", recursive: true)
      assert_raises(NotFoundError) { vm.stat("/tmp/a") }
    end
  end

  def test_lists_of_files
    with_vm do |vm|
      vm.run(["sh", "-c", "mkdir -p /tmp/d/sub/deep && cd /tmp/d && touch sub/file $(seq 2000)"], check: true)
      vm.write_file("/tmp/d/\xff".b, "")
      assert_equal 2002, vm.list("/tmp/d").count
      odd = vm.list("/tmp/d").find { |f| f.path.encoding == Encoding::BINARY }
      assert_equal "\xff".b, odd.path
      assert_equal "", vm.read_file("/tmp/d/".b + odd.path)
      assert_equal %w[sub sub/deep sub/file], vm.walk("/tmp/d", one_file_system: true).map(&:path).grep(/sub/).sort
      assert_equal %w[sub], vm.walk("/tmp/d", depth: 1).select(&:directory?).map(&:path)
      assert_nil(vm.list("/tmp/d/sub") { |f| assert_includes %w[deep file], f.path })
      vm.walk("/") { |f| break f.path }
      assert_raises(RuntimeError) { vm.walk("/") { raise } }
      assert_equal 5, vm.walk("/").lazy.reject(&:directory?).first(5).size
      assert_raises(NotFoundError) { vm.list("/nothing").first }
      assert_kind_of FileInfo, vm.list("/tmp/d").next
      GC.start
      assert_operator ObjectSpace.each_object(Entries).count { |e| !e.closed? }, :<=, 1 # the one that next has left
    end
  end

  def test_changes_of_files
    with_vm do |vm|
      vm.mkdir("/tmp/w")
      watch = vm.watch("/tmp/w", recursive: true) do |w|
        vm.run(["sh", "-c", "cd /tmp/w; echo x >a; mv a b; mkdir sub"], check: true)
        assert_equal ["created", "a", nil, false], w.first.to_a
        assert_equal ["a", false], w.find { |e| e.op == "renamed" && e.path == "b" }.to_h.values_at(:from, :dir)
        assert w.find { |e| e.op == "created" && e.path == "sub" }.dir
        assert_raises(Timeout::Error) { Timeout.timeout(0.2) { w.each {} } }
        vm.remove("/tmp/w", recursive: true)
        assert_equal %w[removed .], w.to_a.last.to_h.values_at(:op, :path)
        w
      end
      assert_raises(InvalidHandleError) { watch.first }
      assert_raises(NotFoundError) { vm.watch("/tmp/w") }
    end
  end

  def test_trees
    Dir.mktmpdir do |dir|
      with_vm do |vm|
        Dir.mkdir("#{dir}/tree")
        File.write("#{dir}/tree/file", "text")
        File.symlink("file", "#{dir}/tree/link")
        vm.copy_in(Pathname(dir) + "tree", "/tmp", owner: "7")
        assert_equal ["text", 7], [vm.read_file("/tmp/tree/link"), vm.stat("/tmp/tree/file").uid]
        tar = vm.pack("/tmp/tree", &:read)
        vm.mkdir("/tmp/again")
        vm.unpack("/tmp/again", owners: true) { |io| io.write(tar) }
        assert_equal [%w[file link], 7], [vm.list("/tmp/again").map(&:path).sort, vm.stat("/tmp/again/file").uid]
        vm.copy_out("/tmp/again/.", "#{dir}/out", max_bytes: 100)
        assert_equal %w[text file], [File.read("#{dir}/out/link"), File.readlink("#{dir}/out/link")]
        assert_raises(LimitError) { vm.copy_out("/tmp/tree", "#{dir}/few", max_entries: 1) }
        vm.run(["mkfifo", "/tmp/tree/fifo"], check: true)
        assert_raises(UnsafeError) { vm.copy_out("/tmp/tree", "#{dir}/fifo") }
        vm.copy_out("/tmp/tree", "#{dir}/rest", skip_special: true)
        assert_equal %w[file link], Dir.children("#{dir}/rest").sort
        assert_raises(Supermachine::Error) { vm.unpack("/tmp/again") { |io| io.write("no archive" * 100) } }
        file = vm.unpack("/tmp/again")
        file.io.write(tar)
        file.close # gives it up
        assert_raises(InvalidHandleError) { file.commit }
      end
    end
  end

  def test_connections
    Dir.mktmpdir do |dir|
      with_vm do |vm|
        vm.run(["sh", "-c", "nc -ll -p 7 -e cat >/dev/null 2>&1 </dev/null & for i in $(seq 600); do netstat -ltn | grep -q :7 && exit; sleep 0.1; done; exit 1"], check: true)
        vm.connect(7) do |io|
          io.write("hello")
          io.close_write
          assert_equal "hello", io.read
        end
        [-> { vm.connect }, -> { UNIXSocket.open(vm.socket_path) }].each do |open| # and find the port
          io = open.call
          io.write("found")
          io.close_write
          assert_equal "found", io.read
          io.close
        end
        host = port = nil
        vm.forward do |f|
          host, port = f.address.split(":")
          assert_nil f.port
          TCPSocket.open(host, port) { |s| s.write("hi"); s.close_write; assert_equal "hi", s.read }
          assert_equal [1, 0, 2, 2], f.stats.values_at(:total, :failed, :sent, :received)
        end
        assert_raises(Errno::ECONNREFUSED) { TCPSocket.open(host, port) }
        vm.forward(7, address: "#{dir}/socket") { UNIXSocket.open("#{dir}/socket") { |s| s.write("hi"); s.close_write; assert_equal "hi", s.read } }
        server = UNIXServer.new("#{dir}/server")
        answering = Thread.new { server.accept.tap { |s| s.write("from the host") }.close }
        vm.forward_to_host("#{dir}/server") do |f|
          assert_nil f.address
          assert_equal "from the host", vm.run(["nc", "127.0.0.1", f.port.to_s]).text
        end
        answering.join
        vm.forward_to_host("127.0.0.1:1", port: 4321) { |f| assert_equal 4321, f.port }
      end
    end
  end

  def test_volumes_mounts_and_network
    Dir.mktmpdir do |dir|
      Dir.mkdir("#{dir}/shared")
      File.write("#{dir}/shared/file", "text")
      server = TCPServer.new("127.0.0.1", 0)
      answering = Thread.new { server.accept.tap { |s| s.write("from the host") }.close }
      IMAGE.start(
        volumes: ["#{dir}/disk:/data:size=64M"], mounts: ["#{dir}/shared:/shared:ro"],
        network: true, egress: ["allow 127.0.0.1:#{server.addr[1]}/tcp"], egress_default: "deny", network_rate: 1 << 20
      ) do |vm|
        assert_equal "text", vm.read_file("/shared/file")
        assert_raises(Supermachine::Error) { vm.write_file("/shared/mine", "") }
        vm.write_file("/data/kept", "kept")
        gateway = vm.run(["sh", "-c", "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'"]).text.strip
        assert_equal "from the host", vm.run(["nc", gateway, server.addr[1].to_s]).text
        answering.join
        assert_operator vm.stats[:net_connections], :>=, 1
        vm.stop
      end
      VM.boot(REF, memory_mib: 96, volumes: ["#{dir}/disk:/data:ro"]) { |vm| assert_equal "kept", vm.read_file("/data/kept") }
    end
  end

  def test_lifetime_and_idle_timeout
    IMAGE.start(lifetime: 1) { |vm| assert_equal "expired", vm.wait }
    IMAGE.start(idle_timeout: 0.5) do |vm|
      until_true { vm.info[:asleep] }
      assert_equal "awake\n", vm.run(["echo", "awake"]).text
    end
  end

  def test_pool
    IMAGE.pool(min: 1, max: 1, acquire_timeout: 60) do |pool|
      3.times do
        pool.acquire do |vm|
          assert_equal "", vm.run(["ls", "/tmp"]).stdout
          vm.write_file("/tmp/mine", "x")
        end
      end
      assert_equal [1, 3, 1], pool.stats.values_at(:max, :acquires, :starts)
      pool.acquire.discard
    end
    small = IMAGE.pool(min: 1, max: 1, acquire_timeout: 0.05)
    until_true { small.stats[:idle] == 1 }
    small.acquire { assert_raises(ExhaustedError) { small.acquire } }
    small.close
    assert_raises(InvalidHandleError) { small.acquire }
    IMAGE.acquire { assert_equal 1, IMAGE.pool_stats[:in_use] }
  end

  def test_snapshots_and_forks
    with_vm do |vm|
      vm.write_file("/tmp/kept", "kept")
      children = vm.fork(2, names: %w[a b])
      assert_equal %W[a\n b\n], (children.map { |c| c.run(["hostname"]).text })
      assert_equal 2, children.map(&:restore_id).uniq.size
      children.each do |c|
        assert_equal "kept", c.read_file("/tmp/kept")
        c.close
      end
      Store.open do |store|
        vm.snapshot("ruby-test", base: IMAGE) do |saved|
          saved.start(name: "again") { |again| assert_equal %w[kept again], [again.read_file("/tmp/kept"), again.name] }
        end
        assert_equal IMAGE.id, store.inspect_snapshot("ruby-test")[:base]
        Image.from_snapshot("ruby-test", store: store) { |i| i.start { |again| assert_equal "kept", again.read_file("/tmp/kept") } }
        assert_includes store.snapshots.map { |s| s[:name] }, "ruby-test"
        store.remove("ruby-test")
        assert_raises(NotFoundError) { store.inspect_snapshot("ruby-test") }
      end
    end
  end

  def test_life_of_a_vm
    vm = IMAGE.start(name: "mine")
    assert_equal ["mine", 96, true, 1], vm.info.values_at(:name, :memory_mib, :running, :vcpus)
    assert_operator vm.stats[:total_bytes], :>, 0
    vm.pause
    vm.resume
    vm.balloon = 0
    assert_kind_of String, vm.console
    waiter = Thread.new { vm.wait }
    assert_equal "stopped", vm.stop(grace: 1)
    assert_equal "stopped", waiter.value
    assert_raises(VMEndedError) { vm.run(["true"]) }
    refute vm.info[:running]
    vm.close
    assert_raises(InvalidHandleError) { vm.info }
  end

  def test_logs_of_a_workload
    with_vm do |vm|
      vm.start_workload(["sh", "-c", "echo started; sleep 1000"])
      vm.logs { |logs| assert_equal "started\n", logs.first }
    end
  end

  def test_calls_that_are_given_up_end_what_they_began
    with_vm do |vm|
      assert_raises(Timeout::Error) { Timeout.timeout(0.5) { vm.run(["sleep", "1234"]) } }
      until_true { !vm.run(["ps", "-o", "args"]).text.include?("sleep 1234") }
      Thread.new { sleep 0.3; ::Process.kill("INT", $$) }
      assert_raises(Interrupt) { vm.wait }
      assert_equal "fine\n", vm.run(["echo", "fine"]).text
    end
    before = nil
    10.times do |i|
      Timeout.timeout(0.02 * i + 0.001) { IMAGE.start.close }
    rescue Timeout::Error
      nil
    ensure
      before ||= fds
    end
    until_true { fds <= before + 2 }
  end

  def test_fibers
    IMAGE.start do |vm|
      began = ::Process.clock_gettime(::Process::CLOCK_MONOTONIC)
      texts = Sync do |task|
        Array.new(20) { |i| task.async { vm.run(["sh", "-c", "sleep 1; echo #{i}"]).text } }.map(&:wait)
      end
      assert_equal((0...20).map { |i| "#{i}\n" }, texts)
      assert_operator ::Process.clock_gettime(::Process::CLOCK_MONOTONIC) - began, :<, 15
      Sync do |task|
        program = vm.exec(["sh", "-c", "echo one; sleep 0.2; echo two"])
        lines = task.async { program.map(&:chomp) }
        assert_equal %w[one two], lines.wait
        program.close
        stopped = task.async { vm.run(["sleep", "4321"]) }
        task.sleep(0.3)
        stopped.stop
      end
      until_true { !vm.run(["ps", "-o", "args"]).text.include?("sleep 4321") }
    end
  end

  def test_run_by_one_call_and_trace_beside_it
    seen = []
    tracing = Thread.new { Supermachine.trace { |e| seen << e } }
    Dir.mktmpdir do |dir|
      File.write(File.join(dir, "file"), "hi\n")
      assert_equal "hi\n", Supermachine.run(REF, ["cat", "/src/file"], memory_mib: 96, mounts: ["#{dir}:/src:ro"], check: true).text
    end
    tracing.kill.join
    assert(seen.any? { |e| e[:category] == "restore" })
  end

  def test_console_and_metrics
    with_vm do |vm|
      vm.run(["sh", "-c", "echo '<1>kept' >/dev/kmsg"], check: true)
      until_true { vm.console.include?("kept") }
      Timeout.timeout(60) do
        assert_match(/kept/, vm.follow_console { |io| io.find { |line| line.include?("kept") } })
        console = vm.follow_console
        vm.run(["sh", "-c", "echo '<1>coming' >/dev/kmsg"], check: true)
        assert_match(/coming/, console.io.find { |line| line.include?("coming") })
        vm.close
        console.io.read # to the end
        console.close
      end
    end
    assert_match(/^\w+/, Supermachine.metrics)
    tracing = Thread.new { Supermachine.trace(categories: ["restore"]) { |e| break e[:category] } }
    until_true { IMAGE.start(&:id) && !tracing.alive? }
    assert_equal "restore", tracing.value
  end

  # All of its snippets but the first, which needs a registry.
  def test_the_readme
    snippets = File.read("#{ROOT}/bindings/ruby/README.md").scan(/^```ruby\n(.*?)^```/m).flatten.drop(1)
    assert_equal 4, snippets.size
    Dir.mktmpdir do |dir|
      Dir.mkdir("#{dir}/site")
      File.write("#{dir}/site/index.html", "hello\n")
      IMAGE.start { |vm| vm.snapshot("readme", base: IMAGE).close }
      out, err, status = Open3.capture3(*RUBY, "-r", "supermachine", "-e", <<~RUBY, chdir: dir)
        Supermachine::Image.from_snapshot("readme") do |image|
          #{snippets.join("\n")}
        end
      RUBY
      assert_equal ["", 0], [err, status.exitstatus]
      ["srv/index.html", "index.html", "ready", "built"].each { |text| assert_includes out, "#{text}\n" }
      assert_equal "hello\n", File.read("#{dir}/copy/index.html")
    end
  end

  def test_vms_end_with_the_program
    status, out, err = ruby('require "supermachine"; puts Supermachine::Image.from_snapshot(ARGV[0]).start.run(%w[echo hi]).text', IMAGE.id)
    assert_equal [0, "hi\n", ""], [status.exitstatus, out, err]
  end

  def test_the_program_lives_through_a_storm
    library = FFI::DynamicLibrary.open(ENV.fetch("SUPERMACHINE_SECOND_LIBRARY"), FFI::DynamicLibrary::RTLD_NOW)
    ticks = FFI::Function.new(:int64, [], library.find_function("second_ticks"))
    give_up = ::Process.clock_gettime(::Process::CLOCK_MONOTONIC) + ENV.fetch("SUPERMACHINE_STORM", "20").to_f
    over = -> { ::Process.clock_gettime(::Process::CLOCK_MONOTONIC) > give_up }
    counts = Hash.new(0)
    names = %w[USR1 USR2 CHLD WINCH HUP]
    before = names.to_h { |s| [s, trap(s) { counts[s] += 1 }] }
    busy = Array.new(2) { Thread.new { with_vm { |vm| assert_equal "x\n", vm.run(%w[echo x]).text until over.call } } }
    storm = Thread.new do
      until over.call
        (names - ["CHLD"]).each { |s| ::Process.kill(s, $$) }
        sleep 0.0005
      end
    end
    workers = Array.new(4) { Thread.new { Array.new(1000) { |i| i.to_s * 10 } until over.call } }
    children = 0
    until over.call
      assert system("true")
      pid = ::Process.spawn("sh", "-c", "kill -USR1 $PPID; exit 7")
      assert_equal 7, ::Process.wait2(pid).last.exitstatus
      pid = ::Process.fork { exit!(8) }
      assert_equal 8, ::Process.wait2(pid).last.exitstatus
      trap("CHLD") { counts["CHLD"] += 1 }
      children += 3
    end
    [*busy, storm, *workers].each(&:join)
    before.each { |s, handler| trap(s, handler || "DEFAULT") }
    assert_operator children, :>, 0
    assert_equal names.sort, counts.keys.sort
    assert_operator ticks.call, :>, 0
  end
end
