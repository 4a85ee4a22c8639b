# frozen_string_literal: true

# What calls cost, and what a program's output comes at: bench.rb SNAPSHOT BYTES. Prints {"call": [nanoseconds…], "stream": [seconds…]}.
require "json"
require "supermachine"

def now(unit = :float_second) = Process.clock_gettime(Process::CLOCK_MONOTONIC, unit)

Supermachine::Image.from_snapshot(ARGV[0]) do |image|
  image.start do |vm|
    call = Array.new(3000) do
      began = now(:nanosecond)
      vm.info
      now(:nanosecond) - began
    end
    stream = Array.new(3) do
      vm.exec(["head", "-c", ARGV[1], "/dev/zero"]) do |p|
        began = now
        n = 0
        while (data = p.stdout.read(1 << 20)) do n += data.bytesize end
        raise "#{n} bytes came" unless n == ARGV[1].to_i

        now - began
      end
    end
    puts JSON.generate({ call: call, stream: stream })
  end
end
