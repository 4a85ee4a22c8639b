# frozen_string_literal: true

# bench.rb prints what a call costs that does little, {"call": [nanoseconds…]}; bench.rb IMAGE BYTES how fast a program's output comes,
# {"stream": [seconds…]}.
require "json"
require "supermachine"

def now(unit = :float_second) = Process.clock_gettime(Process::CLOCK_MONOTONIC, unit)

def calls
  Array.new(10_000) do
    began = now(:nanosecond)
    Supermachine.version
    now(:nanosecond) - began
  end
end

def streams(ref, bytes)
  Supermachine::Image.from_oci(ref, boot_only: true) do |image|
    image.start do |vm|
      Array.new(3) do
        vm.exec(["head", "-c", bytes, "/dev/zero"]) do |p|
          began = now
          n = 0
          while (data = p.stdout.read(1 << 20)) do n += data.bytesize end
          raise "#{n} bytes came" unless n == bytes.to_i

          now - began
        end
      end
    end
  end
end

puts JSON.generate(ARGV.empty? ? { call: calls } : { stream: streams(*ARGV) })
