# frozen_string_literal: true

# Runs untrusted Ruby or Python code: ruby untrusted.rb [IMAGE [PROGRAM]] < CODE
#
# The code gets a VM of its own, restored from one in which the interpreter has run already, and no network; after ten seconds it is killed.
require "supermachine"

ref, program = ARGV.values_at(0, 1)
ref ||= "ruby:3.3-slim"
program ||= "ruby"
progress = ->(event) { warn event.inspect }
result = Supermachine::Image.from_oci(ref, boot_only: true, memory_mib: 256, warmup: [[program, "--version"]], progress: progress) do |image|
  image.start { |vm| vm.run([program, "-"], stdin: $stdin.binmode.read, timeout: 10) }
end
$stdout.write(result.stdout)
$stderr.write(result.stderr)
warn "it took longer than ten seconds" if result.timed_out
exit result.code
