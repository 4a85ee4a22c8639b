# frozen_string_literal: true

# Tests against a real Redis, each with a server of its own that starts in milliseconds: ruby redis_test.rb
require "minitest/autorun"
require "supermachine"

# Boots Redis once, until it listens.
IMAGE = Supermachine::Image.from_oci(ENV.fetch("IMAGE", "redis:7-alpine"), entrypoint: ["redis-server"], guest_port: 6379)
Minitest.after_run { IMAGE.close }

class RedisTest < Minitest::Test
  def setup
    @vm = IMAGE.start
    @connection = @vm.connect
  end

  def teardown
    @connection.close
    @vm.close
  end

  def ask(command)
    @connection.write("#{command}\r\n")
    @connection.readpartial(4096)
  end

  def test_values_are_kept
    assert_equal "+OK\r\n", ask("SET greeting hello")
    assert_equal "$5\r\nhello\r\n", ask("GET greeting")
  end

  def test_each_test_has_an_empty_server
    assert_equal "$-1\r\n", ask("GET greeting")
  end
end
