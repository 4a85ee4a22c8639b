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
    end
  end

  def test_errors
    with_vm do |vm|
      assert_raises(CommandNotFoundError) { vm.run(["nothing"]) }
      assert_raises(NotExecutableError) { vm.run(["/etc/passwd"]) }
      assert_raises(InvalidArgumentError) { vm.run([]) }
      assert_raises(NotFoundError) { vm.read_file("/nothing") }
      assert_raises(RefusedError) { vm.connect(81) }
      assert_match(/exposes none/, assert_raises(InvalidArgumentError) { vm.connect }.message)
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
        host = port = nil
        vm.forward(7) do |f|
          host, port = f.address.split(":")
          TCPSocket.open(host, port) { |s| s.write("hi"); s.close_write; assert_equal "hi", s.read }
        end
        assert_raises(Errno::ECONNREFUSED) { TCPSocket.open(host, port) }
        vm.forward(7, address: "#{dir}/socket") { UNIXSocket.open("#{dir}/socket") { |s| s.write("hi"); s.close_write; assert_equal "hi", s.read } }
      end
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
    assert_operator vm.memory[:total_bytes], :>, 0
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
    assert_equal "hi\n", Supermachine.run(REF, ["echo", "hi"], memory_mib: 96, check: true).text
    tracing.kill.join
    assert(seen.any? { |e| e[:category] == "restore" })
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
