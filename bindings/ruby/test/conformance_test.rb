# frozen_string_literal: true

# The cases that all languages share: capi/conformance.

require_relative "helper"
require "digest"
require "json"
require "timeout"

IMAGE = Supermachine::Image.from_oci("oci:#{ENV.fetch("SUPERMACHINE_TEST_IMAGES")}/busybox:latest", boot_only: true, memory_mib: 96)
Minitest.after_run { IMAGE.close }

class ConformanceTest < Minitest::Test
  BLOCK = Array.new(65_536) { |i| (i * 31 + (i >> 8)) & 255 }.pack("C*")
  LISTEN = "nc -ll -p 7 -e cat >/dev/null 2>&1 </dev/null & for i in $(seq 600); do netstat -ltn | grep -q :7 && exit; sleep 0.1; done; exit 1"

  JSON.parse(File.read("#{ROOT}/capi/conformance/cases.json"), symbolize_names: true).each do |c|
    define_method("test_#{c[:name]}") do
      IMAGE.start do |vm|
        args = plain(c[:with])
        if c[:error]
          e = assert_raises(Supermachine::Error) { send("do_#{c[:do]}", vm, **args) }
          assert_equal [c[:error], Supermachine::ERRORS[e.code]], [e.name, e.class]
        else
          assert_equal plain(c[:gives]), send("do_#{c[:do]}", vm, **args)
        end
      end
    end
  end

  private

  # Data of the cases as binary strings.
  def plain(value)
    case value
    when Array then value.map { |v| plain(v) }
    when Hash
      if value.key?(:text) then value[:text].b
      elsif value.key?(:hex) then [value[:hex]].pack("H*")
      else value.transform_values { |v| plain(v) }
      end
    else value
    end
  end

  def do_run(vm, args:, timeout_ms: nil, env: nil, **options)
    r = vm.run(args, timeout: timeout_ms && timeout_ms / 1000.0, env: env&.transform_keys(&:to_s), **options)
    { code: r.code, signal: r.signal, timed_out: r.timed_out, stdout: r.stdout, stderr: r.stderr }
  end

  def do_cat(vm, bytes:)
    vm.exec(["cat"], stdin: true) do |p|
      writer = Thread.new do
        (bytes / BLOCK.size).times { p.stdin.write(BLOCK) }
        p.stdin.close_write
      end
      hash = Digest::SHA256.new
      n = 0
      while (data = p.stdout.read(1 << 20))
        hash << data
        n += data.size
      end
      writer.join
      { bytes: n, sha256: hash.hexdigest }
    end
  end

  def do_file(vm, path:, data:, mode:)
    vm.write_file(path, data, mode: mode)
    { data: vm.read_file(path), mode: vm.run(["stat", "-c", "%a", path]).text.strip }
  end

  def do_read(vm, path:) = vm.read_file(path)

  def echo(io, data)
    io.write(data)
    io.close_write
    { data: io.read.b }
  end

  def do_connect(vm, port:, data:)
    vm.run(["sh", "-c", LISTEN], check: true)
    vm.connect(port) { |io| echo(io, data) }
  end

  def do_forward(vm, port:, data:)
    vm.run(["sh", "-c", LISTEN], check: true)
    vm.forward(port) { |f| TCPSocket.open(*f.address.split(":")) { |io| echo(io, data) } }
  end

  def do_pool(_vm, max:, rounds:)
    IMAGE.pool(max: max) do |pool|
      listings = Array.new(rounds) do
        pool.acquire do |mine|
          listing = mine.run(["ls", "/tmp"]).stdout
          mine.write_file("/tmp/mine", "x")
          listing
        end
      end
      { listings: listings, starts: pool.stats[:starts] }
    end
  end

  def do_exhaust(_vm, max:, acquire_timeout_ms:)
    IMAGE.pool(min: max, max: max, acquire_timeout: acquire_timeout_ms / 1000.0) do |pool|
      until_true { pool.stats[:idle] == max }
      held = Array.new(max) { pool.acquire }
      begin
        pool.acquire
      ensure
        held.each(&:close)
      end
    end
  end

  def do_snapshot(vm, path:, data:)
    vm.write_file(path, data)
    vm.snapshot(base: IMAGE) { |saved| saved.start { |again| { data: again.read_file(path) } } }
  end

  def do_fork(vm, n:, path:, data:)
    vm.write_file(path, data)
    children = vm.fork(n)
    { data: children.map { |c| c.read_file(path) } }
  ensure
    children&.each(&:close)
  end

  def do_cancel(vm, args:)
    assert_raises(Timeout::Error) { Timeout.timeout(0.5) { vm.run(args) } }
    until_true { !vm.run(["ps", "-o", "args"]).text.include?(args.join(" ")) }
    { gone: true }
  end

  def do_open(_vm, name:) = Supermachine::Image.from_snapshot(name)

  def do_bake(_vm, ref:, **options) = Supermachine::Image.from_oci(ref, **options)

  def do_closed(_vm)
    mine = IMAGE.start
    mine.close
    mine.info
  end

  def do_ended(vm)
    vm.kill
    vm.wait
    vm.run(["true"])
  end
end
