# frozen_string_literal: true

require "minitest/autorun"
require "open3"
require "rbconfig"
require "tmpdir"
require "supermachine"

ROOT = File.expand_path("../../..", __dir__)
RUBY = [RbConfig.ruby, "-W0", "-I#{File.expand_path("../lib", __dir__)}"].freeze

# Runs a script in a process of its own.
def ruby(script, *args, **env)
  out, err, status = Open3.capture3(env.transform_keys(&:to_s), *RUBY, "-e", script, *args)
  [status, out, err]
end

def until_true(seconds = 60)
  give_up = ::Process.clock_gettime(::Process::CLOCK_MONOTONIC) + seconds
  until yield
    flunk "it does not come" if ::Process.clock_gettime(::Process::CLOCK_MONOTONIC) > give_up
    sleep 0.02
  end
end

def fds = Dir.children("/proc/self/fd").size
